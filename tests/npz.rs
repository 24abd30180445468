//! Archives of arrays: those of NumPy, our own, and what hostile bytes may claim.
#![cfg(feature = "npy")]
#![allow(missing_docs)]

use std::path::PathBuf;

use tensorslim::{DType, Error, Matrix, npz};

/// A file of this test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Scratch(std::env::temp_dir().join(format!("tensorslim-npz-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn archive(name: &str, bytes: &[u8]) -> (Scratch, tensorslim::Result<npz::Archive>) {
    let file = Scratch::new(name);
    std::fs::write(&file.0, bytes).unwrap();
    let opened = npz::Archive::open(&file.0);
    (file, opened)
}

/// `numpy.savez("savez.npz", a=<f4 [[0, 1, 2], [3, 4, 5]], **{"layer.0/b": <f8 the same in Fortran order})`, NumPy 2.
const SAVEZ: &[u8] = include_bytes!("data/savez.npz");

#[test]
fn an_archive_of_numpy_reads() {
    let (_file, opened) = archive("numpy", SAVEZ);
    let mut opened = opened.unwrap();
    assert_eq!(opened.names().collect::<Vec<_>>(), ["a", "layer.0/b"]);
    let a = opened.read("a", None).unwrap();
    assert_eq!((a.dtype(), a.shape(), a.is_fortran()), (DType::F32, &[2, 3][..], false));
    assert_eq!(bytemuck::cast_slice::<u8, f32>(a.bytes()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let b = opened.read("layer.0/b", None).unwrap();
    assert_eq!((b.dtype(), b.shape(), b.is_fortran()), (DType::F64, &[2, 3][..], true));
    assert_eq!(bytemuck::cast_slice::<u8, f64>(b.bytes()), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert!(matches!(opened.read("c", None), Err(Error::File { why, .. }) if why.contains("not in the archive")));
}

#[test]
fn what_is_written_reads_back() {
    let file = Scratch::new("own");
    let matrices: Vec<Matrix<f32>> =
        (0..5).map(|p| Matrix::from_fn(3 + p, 2 * p + 1, |i, j| (i * 7 + j * 3 + p) as f32 / 4.0)).collect();
    let mut writer = npz::Writer::create(&file.0).unwrap();
    for (i, (matrix, dtype)) in
        matrices.iter().zip([DType::F16, DType::F32, DType::F64, DType::BF16, DType::F32]).enumerate()
    {
        writer.matrix(&format!("w{i}"), matrix, dtype).unwrap();
    }
    assert!(writer.array("w1", &[1], &[0f32], DType::F32).is_err(), "a name twice");
    assert!(writer.array("odd", &[2], &[0f32], DType::F32).is_err(), "too few elements");
    writer.array("s", &[3], &[3f64, 2.0, 1.0], DType::F64).unwrap();
    writer.finish().unwrap();
    let bytes = std::fs::read(&file.0).unwrap();
    let mut read = npz::Archive::open(&file.0).unwrap();
    assert_eq!(read.names().count(), 6);
    for (i, matrix) in matrices.iter().enumerate() {
        let array = read.read(&format!("w{i}"), (i == 3).then_some(DType::BF16)).unwrap();
        let view = array.tensor().unwrap();
        assert_eq!(view.shape(), [matrix.nrows(), matrix.ncols()]);
        assert_eq!(array.bytes(), matrix.to_bytes(array.dtype()), "{i}");
    }
    // Equal arrays give equal files.
    let again = Scratch::new("again");
    let mut writer = npz::Writer::create(&again.0).unwrap();
    for (i, (matrix, dtype)) in
        matrices.iter().zip([DType::F16, DType::F32, DType::F64, DType::BF16, DType::F32]).enumerate()
    {
        writer.matrix(&format!("w{i}"), matrix, dtype).unwrap();
    }
    writer.array("s", &[3], &[3f64, 2.0, 1.0], DType::F64).unwrap();
    writer.finish().unwrap();
    assert_eq!(std::fs::read(&again.0).unwrap(), bytes);
}

/// More members than the fields of two bytes can count.
#[test]
fn a_hundred_thousand_members_are_read() {
    let file = Scratch::new("many");
    let mut writer = npz::Writer::create(&file.0).unwrap();
    for i in 0..100_000 {
        writer.array(&format!("m{i}"), &[1], &[i as f32], DType::F32).unwrap();
    }
    writer.finish().unwrap();
    let mut read = npz::Archive::open(&file.0).unwrap();
    assert_eq!(read.names().count(), 100_000);
    assert_eq!(read.read("m99999", None).unwrap().bytes(), 99_999f32.to_ne_bytes());
}

#[test]
fn names_are_names_and_no_paths() {
    let file = Scratch::new("names");
    let mut writer = npz::Writer::create(&file.0).unwrap();
    for name in ["../../up", "/root", "", "a b\n"] {
        writer.array(name, &[1], &[1f32], DType::F32).unwrap();
    }
    writer.finish().unwrap();
    let mut read = npz::Archive::open(&file.0).unwrap();
    assert_eq!(read.names().collect::<Vec<_>>(), ["../../up", "/root", "", "a b\n"]);
    assert!(read.read("../../up", None).is_ok());
}

/// Every byte of an archive changed in several ways, and every length of it: an error or the right arrays, no panic and
/// no allocation of what is claimed.
#[test]
fn damaged_archives_are_errors() {
    let want: Vec<u8> = archive("sound", SAVEZ).1.unwrap().read("a", None).unwrap().bytes().to_vec();
    let judge = |name: &str, bytes: &[u8]| {
        let (_file, opened) = archive(name, bytes);
        let Ok(Ok(a)) = opened.map(|mut opened| opened.read("a", None)) else { return };
        assert!(a.bytes() == want || a.shape() != [2, 3] || a.dtype() != DType::F32, "{name}: other numbers");
    };
    for at in 0..SAVEZ.len() {
        for change in [1u8, 0x80, 0xff] {
            let mut bytes = SAVEZ.to_vec();
            bytes[at] ^= change;
            judge("flipped", &bytes);
        }
        judge("cut", &SAVEZ[..at]);
    }
    for (name, bytes, says) in [
        ("empty", &b""[..], "no .npz archive"),
        ("other", &b"\x93NUMPY\x01\x00 something else that is long enough"[..], "no .npz archive"),
    ] {
        let error = archive(name, bytes).1.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn compressed_members_say_what_to_do() {
    // The method of the first member in the directory, set to 8 (deflate).
    let mut bytes = SAVEZ.to_vec();
    let central = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[central + 10] = 8;
    let (_file, opened) = archive("deflated", &bytes);
    let error = opened.unwrap().read("a", None).unwrap_err().to_string();
    assert!(error.contains("compressed") && error.contains("numpy.savez"), "{error}");
}

/// Archives have members that paths name: `archive.npz/member`.
#[test]
fn a_member_reads_as_a_file_does() {
    use tensorslim::npy::{Array, Description, Mapped};

    let file = Scratch::new("members.npz");
    std::fs::write(&file.0, SAVEZ).unwrap();
    let a = Array::read(file.0.join("a")).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(a.bytes()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(Array::read(file.0.join("a.npy")).unwrap().bytes(), a.bytes());
    let b = Array::read_c_order(file.0.join("layer.0/b"), None).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f64>(b.bytes()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(Description::read(file.0.join("layer.0/b")).unwrap().shape(), [2, 3]);
    if let Ok(mapped) = Mapped::open(file.0.join("a"), None) {
        assert_eq!(mapped.tensor().unwrap().shape(), [2, 3]);
    }
    for (name, says) in [("c", "no member \"c\""), ("../a", "no member"), ("", "is no .npy"), ("a/b", "no member")] {
        let error = Array::read(file.0.join(name)).unwrap_err().to_string();
        assert!(error.contains(says) || name.is_empty(), "{name}: {error}");
    }
    // A bit of the elements of `a`, which its checksum does not have.
    let mut bytes = SAVEZ.to_vec();
    let elements = bytes.windows(4).position(|w| w == 5.0f32.to_le_bytes()).unwrap();
    bytes[elements] ^= 1;
    std::fs::write(&file.0, bytes).unwrap();
    let error = Array::read(file.0.join("a")).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[cfg(feature = "linalg")]
mod factors {
    use super::*;
    use tensorslim::{Calibration, Factors, Method, Rank, Report, TruncatedSvd};

    fn matrix(m: usize, n: usize, seed: u64) -> Matrix<f32> {
        Matrix::from_fn(m, n, |i, j| ((i * 37 + j * 101 + seed as usize) as f32 * 0.71).sin() / (1 + i + j) as f32)
    }

    fn statistics(features: usize, seed: u64) -> Calibration {
        let mut c = Calibration::new(features).unwrap();
        c.update(&matrix(3 * features, features, seed).as_tensor().unwrap()).unwrap();
        c
    }

    /// Factors of every kind, with what their truncation needs.
    fn kinds() -> Vec<Factors<f32>> {
        let (w, svd) = (matrix(60, 40, 1), TruncatedSvd::new(Rank::Fixed(9)));
        let (inputs, outputs) = (statistics(40, 2), statistics(60, 3));
        let all = [
            svd.clone(),
            svd.clone().method(Method::SinglePass),
            svd.clone().calibration(&inputs),
            svd.clone().calibration(&inputs).output_calibration(&outputs),
        ];
        all.into_iter().map(|svd| svd.factor(w.as_tensor().unwrap()).unwrap()).collect()
    }

    #[test]
    fn factors_read_back_with_all_that_they_know() {
        for factors in kinds() {
            let bytes = factors.to_bytes().unwrap();
            let again = Factors::<f32>::from_bytes(&bytes).unwrap();
            assert_eq!(again, factors);
            assert_eq!(again.truncate(4).unwrap(), factors.truncate(4).unwrap());
            assert_eq!(Report::from_text(&factors.report().to_text()).unwrap(), *factors.report());
            assert!(Factors::<f64>::from_bytes(&bytes).is_err(), "of another arithmetic");
        }
    }

    #[test]
    fn damaged_factors_are_errors() {
        for factors in kinds() {
            let bytes = factors.to_bytes().unwrap();
            // The names of members are at the end.
            let directory = bytes.len() - 700..bytes.len();
            for at in (0..directory.start).step_by(29).chain(directory) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x40;
                // Of times and attributes nothing is read.
                if let Ok(read) = Factors::<f32>::from_bytes(&damaged) {
                    assert_eq!(read, factors, "at {at}");
                }
                assert!(Factors::<f32>::from_bytes(&bytes[..at]).is_err());
            }
        }
    }

    #[test]
    fn a_report_without_a_line_names_it() {
        let text = kinds()[3].report().to_text();
        for key in ["shape", "method", "norm", "error", "spectrum", "outputs.norm", "elapsed_ns"] {
            let without: String =
                text.lines().filter(|l| !l.starts_with(&format!("{key} "))).fold(String::new(), |t, l| t + l + "\n");
            let error = Report::from_text(&without).unwrap_err().to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
        assert!(Report::from_text(&text.replace("method ", "method x")).is_err());
    }
}
