//! What must hold for any bytes that a parser is given: `tests/parsers.rs` and the targets of `tests/fuzz` share it.

use std::path::Path;

use tensorslim::batch::config::Config;
use tensorslim::batch::manifest::{self, Manifest, parse_journal, tensor_name};
use tensorslim::calibration::Calibration;
use tensorslim::npy::Array;
use tensorslim::svd::SinglePass;
use tensorslim::{DType, Method, Rank, TruncatedSvd};

/// An empty state of a small single pass.
pub(crate) fn empty_state() -> SinglePass<f32> {
    TruncatedSvd::new(Rank::Fixed(1)).method(Method::SinglePass).oversample(1).accumulator((12, 4)).unwrap()
}

/// A `.npy` file.
pub(crate) fn npy(bytes: &[u8]) {
    for bits_of in [None, Some(DType::BF16)] {
        if let Ok(array) = Array::from_bytes(bytes, bits_of) {
            let tensor = array.tensor().unwrap();
            assert_eq!(tensor.shape(), array.shape());
            assert!(array.bytes().len() < bytes.len());
        }
    }
}

/// The bytes of calibration statistics.
pub(crate) fn statistics(bytes: &[u8]) {
    // Behind the checksum, too.
    let body = &bytes[..bytes.len().saturating_sub(4)];
    let sealed = [body, &crc32fast::hash(body).to_le_bytes()].concat();
    for bytes in [bytes, &sealed] {
        if let Ok(c) = Calibration::from_bytes(bytes) {
            assert_eq!(Calibration::from_bytes(&c.to_bytes()).unwrap().to_bytes(), c.to_bytes());
        }
    }
}

/// The bytes of a single pass that goes on.
pub(crate) fn state(bytes: &[u8]) {
    let body = &bytes[..bytes.len().saturating_sub(4)];
    let sealed = [body, &crc32fast::hash(body).to_le_bytes()].concat();
    for bytes in [bytes, &sealed] {
        let mut state = empty_state();
        match state.restore(bytes) {
            // Not to the byte: a signaling NaN comes back quiet.
            Ok(()) => {
                let (written, mut again) = (state.to_bytes(), empty_state());
                again.restore(&written).unwrap();
                assert_eq!(again.to_bytes(), written);
            }
            Err(_) => assert_eq!(state.rows_given(), 0),
        }
    }
}

/// A manifest of a batch.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(m) = Manifest::parse(bytes) {
        assert_eq!(Manifest::parse(m.text().unwrap().as_bytes()).unwrap(), m);
        for entry in &m.tensors {
            let dir = manifest::directory(&entry.name);
            assert!(!dir.contains('/') && !dir.starts_with('.') && !dir.is_empty() && dir.len() <= 255);
        }
    }
}

/// The journal of a batch.
pub(crate) fn journal(bytes: &[u8]) {
    if let Ok((header, entries, end)) = parse_journal(bytes) {
        assert!(end <= bytes.len() && bytes[end - 1] == b'\n');
        let again = parse_journal(&bytes[..end]).unwrap();
        assert_eq!((again.0, again.1.len(), again.2), (header, entries.len(), end));
    }
}

/// The patterns of a batch.
pub(crate) fn toml(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        match Config::parse(text) {
            Ok(config) => {
                let options = config.options("model.layers.0.mlp.up", &Default::default());
                assert!(config.factors("x") || !config.factors("x"));
                if let Some(rule) = options.rule() {
                    options.svd(rule).unwrap();
                }
            }
            Err(why) => assert!(!why.contains('\n'), "{why:?}"),
        }
    }
}

/// A path as the name of a tensor.
pub(crate) fn names(bytes: &[u8]) {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = tensor_name(Path::new(std::ffi::OsStr::from_bytes(bytes)));
        let dir = manifest::directory(&name);
        assert!(!name.chars().any(char::is_control));
        assert!(!dir.contains(['/', '\0', '\\']) && !dir.starts_with('.') && !dir.is_empty() && dir.len() <= 255);
    }
}
