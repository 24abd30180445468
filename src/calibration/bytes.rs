//! Saves and reads calibration statistics as bytes: little-endian, versioned, checksummed, readable from any language.
//!
//! ```text
//!   offset        type       what
//!        0        8 bytes    "TSLIMCAL"
//!        8        u32        version: 1, or 2 if there is an exponent
//!       12        u8         form: 0 Gram matrix, 1 factor
//!       13        u8         accumulation: 0 f64, 1 f32
//!       14        u8         samples that are not finite: 0 refused, 1 skipped
//!       15        i8         e / 64, e the exponent of the samples: 0 in version 1
//!       16        u64        n, features
//!       24        u64        samples
//!       32        u64        skipped samples
//!       40        f64 × n    Σ y of each feature, y = 2^-e x
//!    + 8n         f64 × n    Σ y²
//!   + 16n         f64 × n    max |x|
//!   + 24n         f64 × n(n+1)/2   one triangle, column by column: G of y from its diagonal down, or R of y to it
//!     end         u32        CRC-32 (IEEE 802.3, as zlib.crc32) of everything before
//! ```
//!
//! In NumPy: `n = int.from_bytes(b[16:24], 'little'); t = np.frombuffer(b, '<f8', n*(n+1)//2, 40 + 24*n)`.

use std::sync::Arc;

use super::{
    Accumulation, Calibration, CalibrationOptions, EXPONENT_STEP, Form, MOST_SAMPLES, NonFinite, exponent_of, maximum,
};
use crate::error::{Error, Result};

/// The newest version of the format.
const VERSION: u32 = 2;
/// The most that sums of the same numbers may differ, as a part of them, when they were added in another order or in
/// f32.
const ROUNDING: f64 = 1e-3;
/// The most that a square may have lost by falling below the range of f64, with much to spare.
const UNDERFLOW: f64 = 1e-300;
const HEADER: usize = 40;
const CHECKSUM: usize = 4;

/// Returns the bytes for `n` features, or `None` if they do not fit the address space.
fn length(n: usize) -> Option<usize> {
    let triangle = n.checked_mul(n.checked_add(1)?)? / 2;
    triangle.checked_add(n.checked_mul(3)?)?.checked_mul(8)?.checked_add(HEADER + CHECKSUM)
}

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::Format { what: "calibration statistics", why: why.to_string() }
}

impl Calibration {
    /// The bytes that every file of statistics starts with.
    pub const MAGIC: [u8; 8] = *b"TSLIMCAL";

    /// Returns the statistics as bytes. The layout is documented in the source file, `src/calibration/bytes.rs`, and
    /// stays readable.
    pub fn to_bytes(&self) -> Vec<u8> {
        let settled = self.settled();
        let n = settled.features();
        let mut bytes = Vec::with_capacity(length(n).expect("the statistics are in memory"));
        bytes.extend(Calibration::MAGIC);
        let version: u32 = if settled.exponent == 0 { 1 } else { 2 };
        bytes.extend(version.to_le_bytes());
        let CalibrationOptions { form, accumulation, non_finite } = settled.options;
        let exponent = (settled.exponent / EXPONENT_STEP) as i8;
        bytes.extend([form as u8, accumulation as u8, non_finite as u8, exponent as u8]);
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

    /// Reads statistics from the bytes of [`to_bytes`](Self::to_bytes). Whatever the bytes are, nothing is allocated
    /// beyond a small multiple of them.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes of another version, of a wrong length or checksum, or with numbers that no samples
    /// have. [`Error::TooLarge`] if the system has no memory for the statistics.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let header = bytes.get(..HEADER).ok_or_else(|| malformed(format_args!("{} bytes are too few", bytes.len())))?;
        let count = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        if header[..8] != Calibration::MAGIC {
            return Err(malformed("they start with other bytes"));
        }
        let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
        if !(1..=VERSION).contains(&version) {
            return Err(malformed(format_args!("version {version}; this program reads 1 to {VERSION}")));
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
        let options = CalibrationOptions { form, accumulation, non_finite };
        let mut c = Calibration::empty(n, options, n.checked_mul(n).and_then(|size| size.checked_mul(8)))?;
        (c.samples, c.skipped) = (count(24), count(32));
        if c.samples.max(c.skipped) > MOST_SAMPLES {
            return Err(malformed(format_args!("{} samples, more than 2^43", c.samples.max(c.skipped))));
        }
        c.exponent = i32::from(header[15] as i8) * EXPONENT_STEP;

        let mut numbers = body[HEADER..].as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b));
        let mut next = || {
            let x = numbers.next().expect("the length was checked");
            if x.is_finite() { Ok(x) } else { Err(malformed(format_args!("{x} among the numbers"))) }
        };
        for totals in [&mut c.sums, &mut c.squares, &mut c.largest] {
            totals.iter_mut().try_for_each(|x| next().map(|y| *x = y))?;
        }
        let matrix = Arc::get_mut(&mut c.matrix).expect("nobody else has it yet");
        for j in 0..n {
            for i in part(form, j, n) {
                matrix[(i, j)] = next()?;
            }
        }
        if c.largest.iter().any(|&x| x < 0.0) {
            return Err(malformed("a largest modulus is negative"));
        }
        let exponent = exponent_of(maximum(&c.largest));
        match version {
            // Version 1 had no exponent, whatever the samples were.
            1 if c.exponent == 0 => c.rescale(exponent),
            2 if c.exponent == exponent && exponent != 0 => {}
            _ => return Err(malformed("the exponent is not that of the largest modulus")),
        }
        c.check_moments()?;
        Ok(c)
    }

    /// Checks that samples of the recorded moduli can have these sums.
    fn check_moments(&self) -> Result<()> {
        let (n, samples) = (self.features(), self.samples as f64);
        let no_samples = |what: &str| malformed(format_args!("no samples have {what}; gather the statistics again"));
        let unit = 2f64.powi(-self.exponent);
        let lost = samples * UNDERFLOW;
        let matrix = &*self.matrix;
        for j in 0..n {
            let (sum, square, largest) = (self.sums[j], self.squares[j], self.largest[j] * unit);
            let fits = |x: f64, most: f64| x <= most * (1.0 + ROUNDING) + lost;
            let most = largest * largest;
            if !(fits(sum.abs(), samples * largest) && fits(square, samples * most) && fits(most, square)) {
                return Err(no_samples(&format!("these sums and this largest modulus of feature {j}")));
            }
            let of_matrix = match self.options.form {
                Form::Gram => matrix[(j, j)],
                Form::Factor => (0..=j).map(|i| matrix[(i, j)] * matrix[(i, j)]).sum(),
            };
            if !(of_matrix >= 0.0 && fits(of_matrix, square) && fits(square, of_matrix)) {
                return Err(no_samples(&format!("this matrix and this sum of squares of feature {j}")));
            }
        }
        if self.options.form == Form::Gram {
            // This is the most that a feature can have been where its square has fallen below the range of f64.
            let length = |(&square, &largest): (&f64, &f64)| {
                if square > UNDERFLOW { square.sqrt() } else { samples.sqrt() * largest * unit }
            };
            let lengths: Vec<f64> = self.squares.iter().zip(&self.largest).map(length).collect();
            for (j, length) in lengths.iter().enumerate() {
                let most = lengths[j..].iter().map(|other| length * other * (1.0 + ROUNDING) + lost);
                let column = matrix.col(j).iter().skip(j);
                if let Some(i) = column.zip(most).position(|(x, most)| x.abs() > most) {
                    return Err(no_samples(&format!("such a product of features {j} and {}", j + i)));
                }
            }
        }
        Ok(())
    }
}

/// Returns the rows of column `j` that are kept.
fn part(form: Form, j: usize, n: usize) -> std::ops::Range<usize> {
    match form {
        Form::Gram => j..n,
        Form::Factor => 0..j + 1,
    }
}
