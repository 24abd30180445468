//! Compresses a model's safetensors file: one budget over its feed-forward weights, factors and metadata in a new file.
//!
//! ```sh
//! cargo run --release --example compress_safetensors model.safetensors small.safetensors 2.0
//! ```
//!
//! A weight `W` (m × n) that gets rank k becomes `NAME.up` (m × k) and `NAME.down` (k × n) of its own element type,
//! with `W ≈ up · down`; the metadata has its rank and its error under `tensorslim.NAME`. All else is copied. Weights
//! are looked at one by one, once for their singular values and once for their factors, so that no two are held in
//! memory as factors. Without arguments the example makes a model of its own, and checks the result.
#![allow(clippy::print_stdout)] // an example says what it found

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tensorslim::rank::{Budget, Cost, Layer, Share, rank_for_ratio, uniform};
use tensorslim::rng::{Philox, stream};
use tensorslim::{DType, Factors, Matrix, Rank, Split, TensorRef, TruncatedSvd};

/// Parts of the names of weights in feed-forward layers.
const FEED_FORWARD: [&str; 7] = ["mlp", "ffn", "feed_forward", "intermediate", "fc1", "fc2", "output.dense"];

/// Parts of the names of weights that are no feed-forward layers, whatever else is in the name.
const KEPT: [&str; 3] = ["embed", "attention", "norm"];

/// A tensor of a file: its name, type, shape and bytes.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [from, to, ratio] => compress(from.as_ref(), to.as_ref(), ratio.parse()?),
        [] => {
            let folder = std::env::temp_dir().join(format!("compress_safetensors-{}", std::process::id()));
            std::fs::create_dir_all(&folder)?;
            let done = own_model(&folder);
            std::fs::remove_dir_all(&folder).map_err(Into::into).and(done)
        }
        _ => Err("give a model's file, the file to write, and how many times smaller its layers shall be".into()),
    }
}

/// Reads `from`, makes its feed-forward weights `ratio` times smaller in all, and writes `to`.
fn compress(from: &Path, to: &Path, ratio: f64) -> Result<(), Box<dyn Error>> {
    let bytes = std::fs::read(from)?;
    let model = SafeTensors::deserialize(&bytes)?;
    let mut metadata = SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default();
    let mut names: Vec<&str> = model.names().into_iter().filter(|name| is_candidate(name, &model)).collect();
    names.sort_unstable();

    // The singular values up to the rank at which factors are as large as the weight.
    let mut spectra = Vec::new();
    for name in &names {
        let view = model.tensor(name)?;
        let report = factor(&view, rank_for_ratio(view.shape()[0], view.shape()[1], 1.0).max(1))?.report().clone();
        spectra.push((report.shape, report.dtype, report.spectrum, report.norm.powi(2)));
    }
    let layers: Vec<_> = spectra.iter().map(|(shape, dtype, s, norm)| Layer::new(*shape, *dtype, s, *norm)).collect();
    let whole: u64 = layers.iter().map(|layer| layer.cost(Share::Whole, Cost::Bytes)).sum();
    let budget = Budget { limit: (whole as f64 / ratio) as u64, unit: Cost::Bytes, align: 1 };
    // Without statistics of its gradients nobody knows what an error in one weight costs beside one in another: all are
    // reduced alike. With them, losses have one unit, and `rank::allocate` shares better.
    let shared = uniform(&layers, budget)?;
    println!("{} weights, {whole} bytes -> {}, at most {}", layers.len(), shared.total, budget.limit);

    let mut written = Vec::new();
    for (name, view) in model.tensors() {
        match names.iter().position(|candidate| *candidate == name).map(|i| (shared.shares[i], spectra[i].1)) {
            Some((Share::Rank(k), dtype)) => {
                let f = factor(&view, k)?;
                let (up, down) = f.split(Split::Balanced);
                let error = f.report().relative_error;
                println!("  {name}: {:?} -> rank {k}, relative error {error:.4}", view.shape());
                metadata.insert(format!("tensorslim.{name}"), format!("rank={k} relative_error={error:e}"));
                for (part, weight) in [("up", up), ("down", down)] {
                    let shape = vec![weight.nrows(), weight.ncols()];
                    written.push((format!("{name}.{part}"), view.dtype(), shape, weight.to_bytes(dtype)));
                }
            }
            _ => written.push((name, view.dtype(), view.shape().to_vec(), view.data().to_vec())),
        }
    }
    write(&written, metadata, to)
}

/// Writes tensors, each with its name, type, shape and bytes.
fn write(tensors: &[Stored], metadata: HashMap<String, String>, to: &Path) -> Result<(), Box<dyn Error>> {
    let mut views = Vec::new();
    for (name, dtype, shape, data) in tensors {
        views.push((name, TensorView::new(*dtype, shape.clone(), data)?));
    }
    Ok(safetensors::serialize_to_file(views, Some(metadata), to)?)
}

/// Whether a tensor is the weight of a feed-forward layer, in a type that this crate reads.
fn is_candidate(name: &str, model: &SafeTensors<'_>) -> bool {
    let name_fits = FEED_FORWARD.iter().any(|part| name.contains(part)) && !KEPT.iter().any(|part| name.contains(part));
    name_fits && model.tensor(name).is_ok_and(|view| view.shape().len() == 2 && dtype(view.dtype()).is_some())
}

fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}

/// Factors a weight to rank `k`.
fn factor(view: &TensorView<'_>, k: usize) -> Result<Factors<f32>, Box<dyn Error>> {
    // Tensors of a file start at any byte, and elements in memory do not.
    let mut aligned = vec![0u64; view.data().len().div_ceil(8)];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..view.data().len()];
    bytes.copy_from_slice(view.data());
    let w = TensorRef::from_bytes(dtype(view.dtype()).ok_or("an element type without factors")?, view.shape(), bytes)?;
    Ok(TruncatedSvd::new(Rank::Fixed(k)).factor::<f32>(w)?)
}

/// Makes a small model, compresses it, and checks what came out.
fn own_model(folder: &Path) -> Result<(), Box<dyn Error>> {
    let (from, to) = (folder.join("model.safetensors"), folder.join("small.safetensors"));
    let weight = |index: u64, m: usize, n: usize, decay: f32| {
        let mut z = vec![0f32; m * n];
        Philox::new(3, stream::DATA).normals(index << 32, &mut z);
        Matrix::from_fn(m, n, |i, j| z[i * n + j] * (1.0 + j as f32).powf(-decay)).to_bytes(DType::BF16)
    };
    let stored = |name: String, shape: [usize; 2], index: u64, decay: f32| -> Stored {
        (name, Dtype::BF16, shape.to_vec(), weight(index, shape[0], shape[1], decay))
    };
    let mut tensors = vec![stored("embed_tokens".to_owned(), [500, 64], 99, 0.0)];
    for i in 0..4 {
        let decay = 0.3 * i as f32;
        tensors.push(stored(format!("layer.{i}.mlp.up"), [256, 64], 2 * i, decay));
        tensors.push(stored(format!("layer.{i}.mlp.down"), [64, 256], 2 * i + 1, decay));
    }
    write(&tensors, HashMap::from([("format".to_owned(), "pt".to_owned())]), &from)?;
    compress(&from, &to, 2.0)?;

    let bytes = std::fs::read(&to)?;
    let small = SafeTensors::deserialize(&bytes)?;
    let metadata = SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default();
    assert_eq!((small.tensor("embed_tokens")?.data(), &metadata["format"][..]), (&tensors[0].3[..], "pt"));
    assert!(small.tensors().iter().map(|(_, view)| view.data().len()).sum::<usize>() <= 256 * 64 * 8 + 2 * 500 * 64);
    assert!(metadata.keys().any(|key| key.starts_with("tensorslim.layer.3.mlp")));
    Ok(())
}
