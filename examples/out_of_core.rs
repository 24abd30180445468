//! Factors a matrix that is larger than the memory it may use: rows are read from a file, block by block.
#![allow(clippy::print_stdout)] // an example says what it found

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use tensorslim::operator::{RowSource, Watch};
use tensorslim::rng::{Philox, stream};
use tensorslim::{DType, Error, Rank, TensorRef, TruncatedSvd};

/// Row-major f32 numbers in native byte order, from the start of a file.
struct Rows {
    file: File,
    shape: (usize, usize),
}

impl RowSource for Rows {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> tensorslim::Result<()> {
        let at = SeekFrom::Start((first * self.shape.1 * size_of::<f32>()) as u64);
        let read = self.file.seek(at).and_then(|_| self.file.read_exact(dst));
        read.map_err(|e| Error::file(Path::new("weights.bin"), e))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (m, n) = (8192, 512);
    let mut weight = vec![0f32; m * n];
    Philox::new(4, stream::DATA).normals(0, &mut weight);
    weight.iter_mut().enumerate().for_each(|(i, w)| *w /= 1.0 + (i % n) as f32 / 8.0);
    let path = std::env::temp_dir().join(format!("tensorslim-example-{}.bin", std::process::id()));
    std::fs::write(&path, bytemuck::cast_slice(&weight))?;

    // 16 MiB of weight, and 8 MiB to work in. What cannot be kept would be refused before the work starts.
    let mut source = Rows { file: File::open(&path)?, shape: (m, n) };
    let limit = 8 << 20;
    let svd = TruncatedSvd::new(Rank::Fixed(64));
    let f = svd.clone().memory_limit(limit).factor_rows::<f32>(&mut source, &Watch::default());
    std::fs::remove_file(&path)?;
    let f = f?;

    let report = f.report();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!("{:.1} MiB in {} passes, error {:.4}", mib(report.peak_bytes), report.passes, report.relative_error);
    assert!(report.peak_bytes <= limit && limit < size_of_val(&weight[..]));

    // The answer is that of the matrix in memory.
    let whole = svd.factor::<f32>(TensorRef::new(&weight, &[m, n])?)?;
    assert!((report.relative_error - whole.report().relative_error).abs() < 1e-3);
    Ok(())
}
