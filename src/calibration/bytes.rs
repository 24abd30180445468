//! Calibration statistics as bytes: little-endian, versioned, checksummed, readable from any language.
//!
//! ```text
//!   offset        type       what
//!        0        8 bytes    "TSLIMCAL"
//!        8        u32        version, 1
//!       12        u8         form: 0 Gram matrix, 1 factor
//!       13        u8         accumulation: 0 f64, 1 f32
//!       14        u8         samples that are not finite: 0 refused, 1 skipped
//!       15        u8         0
//!       16        u64        n, features
//!       24        u64        samples
//!       32        u64        skipped samples
//!       40        f64 × n    Σ x of each feature
//!    + 8n         f64 × n    Σ x²
//!   + 16n         f64 × n    max |x|
//!   + 24n         f64 × n(n+1)/2   one triangle, column by column: G from its diagonal down, or R down to its diagonal
//!     end         u32        CRC-32 (IEEE 802.3, as zlib.crc32) of everything before
//! ```
//!
//! In NumPy: `n = int.from_bytes(b[16:24], 'little'); t = np.frombuffer(b, '<f8', n*(n+1)//2, 40 + 24*n)`.

use std::sync::Arc;

use faer::Mat;

use super::{Accumulation, Calibration, CalibrationOptions, Form, NonFinite};
use crate::error::{Error, Result};

const VERSION: u32 = 1;
const HEADER: usize = 40;
const CHECKSUM: usize = 4;

/// Bytes for `n` features, if they fit the address space.
fn length(n: usize) -> Option<usize> {
    let triangle = n.checked_mul(n.checked_add(1)?)? / 2;
    triangle.checked_add(n.checked_mul(3)?)?.checked_mul(8)?.checked_add(HEADER + CHECKSUM)
}

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::Format { what: "calibration statistics", why: why.to_string() }
}

impl Calibration {
    /// What the bytes start with.
    pub const MAGIC: [u8; 8] = *b"TSLIMCAL";

    /// The statistics as bytes. The layout is documented in the source file, `src/calibration/bytes.rs`, and stays readable.
    pub fn to_bytes(&self) -> Vec<u8> {
        let settled = self.settled();
        let n = settled.features();
        let mut bytes = Vec::with_capacity(length(n).expect("the statistics are in memory"));
        bytes.extend(Calibration::MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        let CalibrationOptions { form, accumulation, non_finite } = settled.options;
        bytes.extend([form as u8, accumulation as u8, non_finite as u8, 0]);
        for count in [n as u64, settled.samples, settled.skipped] {
            bytes.extend(count.to_le_bytes());
        }
        for x in settled.sums.iter().chain(&settled.squares).chain(&settled.largest) {
            bytes.extend(x.to_le_bytes());
        }
        for j in 0..n {
            for i in part(form, j, n) {
                bytes.extend(settled.matrix[(i, j)].to_le_bytes());
            }
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Statistics from [`to_bytes`](Self::to_bytes). Whatever the bytes are, nothing is allocated beyond a small multiple of them.
    ///
    /// # Errors
    /// [`Error::Format`] for anything that is not such statistics: another version, a wrong length or checksum, numbers
    /// that no samples have.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let header = bytes.get(..HEADER).ok_or_else(|| malformed(format_args!("{} bytes are too few", bytes.len())))?;
        let count = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        if header[..8] != Calibration::MAGIC {
            return Err(malformed("they start with other bytes"));
        }
        let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(malformed(format_args!("version {version}; this program reads {VERSION}")));
        }
        let n = usize::try_from(count(16)).ok().filter(|&n| n > 0);
        let Some(n) = n.filter(|&n| length(n) == Some(bytes.len())) else {
            return Err(malformed(format_args!("{} bytes for {} features", bytes.len(), count(16))));
        };
        let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        if crc32fast::hash(body).to_le_bytes() != *checksum {
            return Err(malformed("the checksum does not match; the bytes were damaged"));
        }
        let form = match header[12] {
            0 => Form::Gram,
            1 => Form::Factor,
            other => return Err(malformed(format_args!("unknown form {other}"))),
        };
        let accumulation = match header[13] {
            0 => Accumulation::F64,
            1 => Accumulation::F32,
            other => return Err(malformed(format_args!("unknown accumulation {other}"))),
        };
        let non_finite = match header[14] {
            0 => NonFinite::Refuse,
            1 => NonFinite::Skip,
            other => return Err(malformed(format_args!("unknown treatment {other} of samples that are not finite"))),
        };
        let mut c = Calibration::with(n, CalibrationOptions { form, accumulation, non_finite })?;
        (c.samples, c.skipped) = (count(24), count(32));

        let mut numbers = body[HEADER..].as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b));
        let mut next = || {
            let x = numbers.next().expect("the length was checked");
            if x.is_finite() { Ok(x) } else { Err(malformed(format_args!("{x} among the numbers"))) }
        };
        for totals in [&mut c.sums, &mut c.squares, &mut c.largest] {
            totals.iter_mut().try_for_each(|x| next().map(|y| *x = y))?;
        }
        let mut matrix = Mat::zeros(n, n);
        for j in 0..n {
            for i in part(form, j, n) {
                matrix[(i, j)] = next()?;
            }
        }
        if c.squares.iter().chain(&c.largest).any(|&x| x < 0.0)
            || form == Form::Gram && (0..n).any(|j| matrix[(j, j)] < 0.0)
        {
            return Err(malformed("a sum of squares is negative"));
        }
        c.matrix = Arc::new(matrix);
        Ok(c)
    }
}

/// Rows of column `j` that are kept.
fn part(form: Form, j: usize, n: usize) -> std::ops::Range<usize> {
    match form {
        Form::Gram => j..n,
        Form::Factor => 0..j + 1,
    }
}
