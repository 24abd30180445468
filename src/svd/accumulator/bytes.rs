//! Saves the state of a pass as bytes, so that a pass over a matrix that takes hours resumes where it was stopped.
//!
//! ```text
//!   "TSLIMONE"  u32 version  u32 CRC-32 of the options  u32 bytes of a number  u32 0
//!   u64 ranges of rows given, u64 × 2 each      f64 ‖A‖²  f64 max |a|  u64 nanoseconds
//!   range, co-range, core, error: numbers, column by column       u32 CRC-32 of everything before
//! ```
//!
//! All little-endian. Shapes are not in it: bytes are read into the empty state of the same options and matrix, and
//! must have its length.

use std::time::Duration;

use faer::Mat;

use super::SinglePass;
use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::Element;

const MAGIC: &[u8; 8] = b"TSLIMONE";
const VERSION: u32 = 1;

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::Format { what: "the state of a single pass", why: why.to_string() }
}

/// Reads numbers off the front of a slice of bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| malformed("they end too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn f64(&mut self) -> Result<f64> {
        let x = self.take().map(f64::from_le_bytes)?;
        if x.is_finite() && x >= 0.0 { Ok(x) } else { Err(malformed(format_args!("{x} among the numbers"))) }
    }
}

impl<T: Scalar> SinglePass<T> {
    fn parts(&self) -> [&Mat<T>; 4] {
        [&self.state.range, &self.state.corange, &self.state.core, &self.state.error]
    }

    /// Returns a checksum of the options, which tells apart states that must not be mixed.
    fn fingerprint(&self) -> u32 {
        crc32fast::hash(format!("{} {:?}", env!("CARGO_PKG_VERSION"), self.plan.task).as_bytes())
    }

    /// Returns the state as bytes; the layout is in the source file, `src/svd/accumulator/bytes.rs`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + 16 * self.given.len() + self.state_bytes());
        bytes.extend(MAGIC);
        for word in [VERSION, self.fingerprint(), size_of::<T>() as u32, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend((self.given.len() as u64).to_le_bytes());
        for rows in &self.given {
            bytes.extend([rows.start as u64, rows.end as u64].map(u64::to_le_bytes).concat());
        }
        bytes.extend(self.state.norm_squared.to_le_bytes());
        bytes.extend(self.largest.to_le_bytes());
        bytes.extend((self.elapsed.as_nanos() as u64).to_le_bytes());
        for part in self.parts() {
            for &x in part.col_iter().flat_map(|column| column.iter()) {
                match size_of::<T>() {
                    4 => bytes.extend((Element::to_f64(x) as f32).to_le_bytes()),
                    _ => bytes.extend(Element::to_f64(x).to_le_bytes()),
                }
            }
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Restores the state that [`to_bytes`](Self::to_bytes) wrote into an empty state of the same options and shape. On
    /// an error the state is as before.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes of another version or of other options, with a wrong length or checksum, or with
    /// rows out of order.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or_else(|| malformed("they are too few"))?;
        if crc32fast::hash(body).to_le_bytes() != *checksum {
            return Err(malformed("the checksum does not match; they were damaged"));
        }
        let mut reader = Reader(body);
        if reader.take::<8>()? != *MAGIC || reader.u32()? != VERSION {
            return Err(malformed("they start with other bytes"));
        }
        if reader.u32()? != self.fingerprint() || reader.u32()? != size_of::<T>() as u32 || reader.u32()? != 0 {
            return Err(malformed("they are of other options"));
        }
        let (m, mut given) = (self.shape().0 as u64, Vec::new());
        let mut end = 0;
        for i in 0..reader.u64()? {
            let rows = reader.u64()?..reader.u64()?;
            // Ranges that touch would have been joined, so that they are an error here.
            if rows.start >= rows.end || rows.end > m || i > 0 && rows.start <= end {
                return Err(malformed(format_args!("rows {rows:?} of {m} are out of order")));
            }
            end = rows.end;
            given.push(rows.start as usize..rows.end as usize);
        }
        let (norm_squared, largest, elapsed) = (reader.f64()?, reader.f64()?, Duration::from_nanos(reader.u64()?));
        if reader.0.len() != self.state_bytes() {
            return Err(malformed(format_args!("{} bytes of numbers, not {}", reader.0.len(), self.state_bytes())));
        }
        let mut next = reader.0.chunks_exact(size_of::<T>()).map(|x| match *x {
            [a, b, c, d] => T::from_f64(f32::from_le_bytes([a, b, c, d]).into()),
            [a, b, c, d, e, f, g, h] => T::from_f64(f64::from_le_bytes([a, b, c, d, e, f, g, h])),
            _ => unreachable!("numbers have 4 or 8 bytes"),
        });
        for part in [&mut self.state.range, &mut self.state.corange, &mut self.state.core, &mut self.state.error] {
            for x in part.as_mut().col_iter_mut().flat_map(|column| column.iter_mut()) {
                *x = next.next().expect("the length was checked");
            }
        }
        (self.given, self.state.norm_squared, self.largest, self.elapsed) = (given, norm_squared, largest, elapsed);
        Ok(())
    }

    /// Returns the bytes of the sketches.
    pub fn state_bytes(&self) -> usize {
        self.parts().iter().map(|a| a.nrows() * a.ncols()).sum::<usize>() * size_of::<T>()
    }

    /// Returns how many of the first rows were given without a gap.
    pub fn rows_given(&self) -> usize {
        self.given.first().filter(|rows| rows.start == 0).map_or(0, |rows| rows.end)
    }
}
