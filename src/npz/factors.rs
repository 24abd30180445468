//! Factors as the bytes of one archive: what NumPy reads, and what [`Factors::truncate`] needs after they are read again.
//!
//! | member | shape | |
//! |---|---|---|
//! | `u`, `s`, `vt` | m × k, k, k × n | the factors |
//! | `report` | bytes | [`Report::to_text`] |
//! | `errors` | k × 2 | of a single pass: the error at each rank, with its standard deviation |
//! | `turn`, `gains` | k × k, k or 0 | under a calibration: the directions in the order of their gain |
//! | `across`, `held` | k × k, k | under output statistics: the directions that are not orthogonal |
//!
//! Each member has its CRC-32. The arrays are in the arithmetic of the factors.

use std::io::Cursor;

use faer::Mat;

use super::{Archive, Writer};
use crate::error::{Error, Result};
use crate::factors::{Factors, Oblique, Slices, Weighted};
use crate::report::Report;
use crate::simd::Scalar;
use crate::tensor::{DType, Element, Matrix};

/// The names of all members.
const MEMBERS: [&str; 9] = ["u", "s", "vt", "report", "errors", "turn", "gains", "across", "held"];

impl<T: Scalar> Factors<T> {
    /// Returns the factors with their report as the bytes of a `.npz` archive, which `numpy.load` reads and
    /// [`from_bytes`](Self::from_bytes) turns into the same factors again.
    ///
    /// ```
    /// use tensorslim::{Factors, Rank, TensorRef, TruncatedSvd};
    ///
    /// let weights: Vec<f32> = (0..96 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    /// let factors = TruncatedSvd::new(Rank::Fixed(2)).factor::<f32>(TensorRef::new(&weights, &[96, 64])?)?;
    /// assert_eq!(Factors::from_bytes(&factors.to_bytes()?)?, factors);
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Memory takes all that is written, so that there are none.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut writer = Writer::new(Vec::new());
        writer.matrix("u", self.u(), T::DTYPE)?;
        writer.array("s", &[self.rank()], self.s(), T::DTYPE)?;
        writer.matrix("vt", self.vt(), T::DTYPE)?;
        writer.text("report", &self.report().to_text())?;
        match self.slices() {
            Slices::Orthogonal => {}
            Slices::Measured(errors) => {
                let flat: Vec<f64> = errors.iter().flat_map(|&(error, deviation)| [error, deviation]).collect();
                writer.array("errors", &[errors.len(), 2], &flat, DType::F64)?;
            }
            Slices::Weighted(Weighted { turn, gains, oblique }) => {
                writer.matrix("turn", &by_rows(turn), T::DTYPE)?;
                writer.array("gains", &[gains.len()], gains, DType::F64)?;
                if let Some(Oblique { across, held }) = oblique {
                    writer.matrix("across", &by_rows(across), T::DTYPE)?;
                    writer.array("held", &[held.len()], held, DType::F64)?;
                }
            }
        }
        writer.finish()
    }

    /// Reads factors from the bytes that [`to_bytes`](Self::to_bytes) made, in the same arithmetic.
    ///
    /// # Errors
    /// [`Error::File`] for bytes that are no archive, are damaged, or lack a member; [`Error::Shape`] and
    /// [`Error::Option`] for members that do not fit each other or the arithmetic.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut stored = Stored(Archive::new(Cursor::new(bytes))?);
        // A name that was damaged would otherwise be that of a member that the factors do without.
        if let Some(name) = stored.0.names().find(|name| !MEMBERS.contains(name)) {
            return Err(stored.0.damaged(name, "is none of the members of factors"));
        }
        let report = Report::from_text(&stored.0.read_text("report")?)?;
        let ((m, n), k) = (report.shape, report.rank);
        let (u, s, vt) = (stored.matrix("u", m, k)?, stored.values("s", k)?, stored.matrix("vt", k, n)?);
        let slices = if stored.has("errors") {
            let errors: Vec<f64> = stored.array("errors", &[k, 2])?;
            Slices::Measured(errors.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
        } else if stored.has("turn") {
            let turn = by_columns(&stored.matrix("turn", k, k)?);
            let gains = stored.values("gains", if report.activation.is_some() { k } else { 0 })?;
            let oblique = match stored.has("across") {
                false => None,
                true => {
                    let across = by_columns(&stored.matrix("across", k, k)?);
                    Some(Oblique { across, held: stored.values("held", k)? })
                }
            };
            Slices::Weighted(Weighted { turn, gains, oblique })
        } else {
            Slices::Orthogonal
        };
        Ok(Factors::from_parts(u, s, vt, report)?.with_slices(slices))
    }
}

/// The members of an archive of factors.
struct Stored<'a>(Archive<Cursor<&'a [u8]>>);

impl Stored<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.names().any(|member| member == name)
    }

    /// Reads the elements of an array of this type and shape.
    fn array<E: Element>(&mut self, name: &'static str, shape: &[usize]) -> Result<Vec<E>> {
        let array = self.0.read(name, None)?;
        if array.dtype() != E::DTYPE || array.shape() != shape || array.is_fortran() {
            let want = format_args!("{name} of shape {shape:?} in {}", E::DTYPE);
            let got = format_args!("{:?} in {}", array.shape(), array.dtype());
            return Err(Error::shape("Factors::from_bytes", want, got));
        }
        Ok(bytemuck::cast_slice(array.bytes()).to_vec())
    }

    fn matrix<E: Element>(&mut self, name: &'static str, m: usize, n: usize) -> Result<Matrix<E>> {
        Matrix::from_vec(self.array(name, &[m, n])?, m, n)
    }

    /// Reads an array of one axis, which may have no elements.
    fn values<E: Element>(&mut self, name: &'static str, count: usize) -> Result<Vec<E>> {
        if count == 0 { Ok(Vec::new()) } else { self.array(name, &[count]) }
    }
}

fn by_rows<T: Scalar>(a: &Mat<T>) -> Matrix<T> {
    Matrix::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)])
}

fn by_columns<T: Scalar>(a: &Matrix<T>) -> Mat<T> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a.row(i)[j])
}
