//! Dense factorizations through cuSOLVER, on panels in device memory: thin wrappers of its `sys` level.
//!
//! Names and semantics are LAPACK's: matrices are column-major and overwritten, triangles are named by `lower`.
//! Each call waits for its own status word.

use cudarc::cusolver::sys::{self, cublasFillMode_t as Fill, cusolverEigMode_t as Vectors};

use super::blas::int;
use super::device::Buffer;
use super::panel::DevicePanel;
use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::DType;

const LOWER: Fill = Fill::CUBLAS_FILL_MODE_LOWER;
const VECTORS: Vectors = Vectors::CUSOLVER_EIG_MODE_VECTOR;

/// The status word of a factorization.
fn finish(op: &'static str, info: &Buffer<i32>) -> Result<usize> {
    let mut word = [0];
    info.device().download(info, 0, &mut word)?;
    usize::try_from(word[0]).map_err(|_| Error::option(op, word[0], "arguments that cuSOLVER takes"))
}

fn check_square<T: Scalar>(op: &'static str, a: &DevicePanel<T>) -> Result<()> {
    let (m, n) = (a.nrows(), a.ncols());
    if m == n { Ok(()) } else { Err(Error::shape(op, "a square matrix", format_args!("{m}×{n}"))) }
}

/// Cholesky: the lower triangle of `a` becomes L with `a = L Lᵀ` (POTRF).
///
/// # Errors
/// [`Error::Shape`] unless `a` is square; [`Error::NoConvergence`] if it is not positive definite; [`Error::Device`].
pub fn potrf<T: Scalar>(a: &mut DevicePanel<T>) -> Result<()> {
    check_square("potrf", a)?;
    let device = a.device().clone();
    let (n, ld, at) = (int(a.nrows())?, int(a.ld())?, a.address(0));
    let mut length = 0;
    // SAFETY: the matrix has the shape that is given, in the type that the match names; here and in all calls below.
    device.solver("cusolverDn*potrf_bufferSize", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDpotrf_bufferSize(h, LOWER, n, at as *mut f64, ld, &mut length),
            _ => sys::cusolverDnSpotrf_bufferSize(h, LOWER, n, at as *mut f32, ld, &mut length),
        }
    })?;
    let (work, info) = (device.alloc::<T>(length as usize)?, device.zeros::<i32>(1)?);
    let (w, i) = (work.address(0), info.address(0) as *mut i32);
    // SAFETY: as above, with a workspace of the length that was asked for.
    device.solver("cusolverDn*potrf", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDpotrf(h, LOWER, n, at as *mut f64, ld, w as *mut f64, length, i),
            _ => sys::cusolverDnSpotrf(h, LOWER, n, at as *mut f32, ld, w as *mut f32, length, i),
        }
    })?;
    if finish("potrf", &info)? == 0 { Ok(()) } else { Err(Error::NoConvergence { op: "potrf" }) }
}

/// Householder QR: R above the diagonal of `a`, reflectors below it (GEQRF). Returns their factors τ.
///
/// # Errors
/// [`Error::Shape`] if `a` is wider than tall; [`Error::Device`].
pub fn geqrf<T: Scalar>(a: &mut DevicePanel<T>) -> Result<DevicePanel<T>> {
    let (m, n) = (a.nrows(), a.ncols());
    if m < n {
        return Err(Error::shape("geqrf", "at least as many rows as columns", format_args!("{m}×{n}")));
    }
    let device = a.device().clone();
    let tau = DevicePanel::zeros(&device, n, 1)?;
    let (m, n, ld, at, t) = (int(m)?, int(n)?, int(a.ld())?, a.address(0), tau.address(0));
    let mut length = 0;
    // SAFETY: as in `potrf`; τ has n elements.
    device.solver("cusolverDn*geqrf_bufferSize", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDgeqrf_bufferSize(h, m, n, at as *mut f64, ld, &mut length),
            _ => sys::cusolverDnSgeqrf_bufferSize(h, m, n, at as *mut f32, ld, &mut length),
        }
    })?;
    let (work, info) = (device.alloc::<T>(length as usize)?, device.zeros::<i32>(1)?);
    let (w, i) = (work.address(0), info.address(0) as *mut i32);
    // SAFETY: as above.
    device.solver("cusolverDn*geqrf", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDgeqrf(h, m, n, at as *mut f64, ld, t as *mut f64, w as *mut f64, length, i),
            _ => sys::cusolverDnSgeqrf(h, m, n, at as *mut f32, ld, t as *mut f32, w as *mut f32, length, i),
        }
    })?;
    finish("geqrf", &info)?;
    Ok(tau)
}

/// The orthonormal columns of a [`geqrf`], in place of its reflectors (ORGQR).
///
/// # Errors
/// [`Error::Device`].
pub fn orgqr<T: Scalar>(a: &mut DevicePanel<T>, tau: &DevicePanel<T>) -> Result<()> {
    let device = a.device().clone();
    let (m, n, ld, at, t) = (int(a.nrows())?, int(a.ncols())?, int(a.ld())?, a.address(0), tau.address(0));
    let mut length = 0;
    // SAFETY: as in `geqrf`.
    device.solver("cusolverDn*orgqr_bufferSize", |h| unsafe {
        match T::DTYPE {
            DType::F64 => {
                sys::cusolverDnDorgqr_bufferSize(h, m, n, n, at as *const f64, ld, t as *const f64, &mut length)
            }
            _ => sys::cusolverDnSorgqr_bufferSize(h, m, n, n, at as *const f32, ld, t as *const f32, &mut length),
        }
    })?;
    let (work, info) = (device.alloc::<T>(length as usize)?, device.zeros::<i32>(1)?);
    let (w, i) = (work.address(0), info.address(0) as *mut i32);
    // SAFETY: as above.
    device.solver("cusolverDn*orgqr", |h| unsafe {
        match T::DTYPE {
            DType::F64 => {
                sys::cusolverDnDorgqr(h, m, n, n, at as *mut f64, ld, t as *const f64, w as *mut f64, length, i)
            }
            _ => sys::cusolverDnSorgqr(h, m, n, n, at as *mut f32, ld, t as *const f32, w as *mut f32, length, i),
        }
    })?;
    finish("orgqr", &info)?;
    Ok(())
}

/// Eigenvalues, nondecreasing, of the symmetric matrix whose lower triangle is in `a`, which becomes its eigenvectors
/// (SYEVD).
///
/// # Errors
/// [`Error::Shape`] unless `a` is square; [`Error::NoConvergence`]; [`Error::Device`].
pub fn syevd<T: Scalar>(a: &mut DevicePanel<T>) -> Result<Vec<T>> {
    check_square("syevd", a)?;
    let device = a.device().clone();
    let values = device.zeros::<T>(a.nrows())?;
    let (n, ld, at, v) = (int(a.nrows())?, int(a.ld())?, a.address(0), values.address(0));
    let mut length = 0;
    // SAFETY: as in `potrf`; there are n values.
    device.solver("cusolverDn*syevd_bufferSize", |h| unsafe {
        match T::DTYPE {
            DType::F64 => {
                let (at, v) = (at as *const f64, v as *const f64);
                sys::cusolverDnDsyevd_bufferSize(h, VECTORS, LOWER, n, at, ld, v, &mut length)
            }
            _ => {
                let (at, v) = (at as *const f32, v as *const f32);
                sys::cusolverDnSsyevd_bufferSize(h, VECTORS, LOWER, n, at, ld, v, &mut length)
            }
        }
    })?;
    let (work, info) = (device.alloc::<T>(length as usize)?, device.zeros::<i32>(1)?);
    let (w, i) = (work.address(0), info.address(0) as *mut i32);
    // SAFETY: as above.
    device.solver("cusolverDn*syevd", |h| unsafe {
        match T::DTYPE {
            DType::F64 => {
                let (at, v, w) = (at as *mut f64, v as *mut f64, w as *mut f64);
                sys::cusolverDnDsyevd(h, VECTORS, LOWER, n, at, ld, v, w, length, i)
            }
            _ => {
                let (at, v, w) = (at as *mut f32, v as *mut f32, w as *mut f32);
                sys::cusolverDnSsyevd(h, VECTORS, LOWER, n, at, ld, v, w, length, i)
            }
        }
    })?;
    if finish("syevd", &info)? != 0 {
        return Err(Error::NoConvergence { op: "syevd" });
    }
    let mut host = vec![T::zeroed(); a.nrows()];
    device.download(&values, 0, &mut host)?;
    Ok(host)
}

/// `a = U diag(s) Vᵀ` by Jacobi rotations, `s` nonincreasing; `a` is used up (GESVDJ). Returns `(U, s, V)`, U of the
/// shape of `a`.
///
/// # Errors
/// [`Error::Shape`] if `a` is wider than tall; [`Error::NoConvergence`]; [`Error::Device`].
pub fn gesvdj<T: Scalar>(a: DevicePanel<T>) -> Result<(DevicePanel<T>, Vec<T>, DevicePanel<T>)> {
    let (m, n) = (a.nrows(), a.ncols());
    if m < n {
        return Err(Error::shape("gesvdj", "at least as many rows as columns", format_args!("{m}×{n}")));
    }
    let device = a.device().clone();
    let (u, v, values) =
        (DevicePanel::zeros(&device, m, n)?, DevicePanel::zeros(&device, n, n)?, device.zeros::<T>(n)?);
    let (rows, columns, ld, ldu, ldv) = (int(m)?, int(n)?, int(a.ld())?, int(u.ld())?, int(v.ld())?);
    let (at, ut, vt, st) = (a.address(0), u.address(0), v.address(0), values.address(0));
    let parameters = Jacobi::new(&device)?;
    let (mut length, econ) = (0, 1);
    // SAFETY: as in `potrf`; U is m×n, V n×n, and there are n values.
    device.solver("cusolverDn*gesvdj_bufferSize", |h| unsafe {
        let j = parameters.0;
        match T::DTYPE {
            DType::F64 => {
                let (a, s, u, v) = (at as *const f64, st as *const f64, ut as *const f64, vt as *const f64);
                let l = &mut length;
                sys::cusolverDnDgesvdj_bufferSize(h, VECTORS, econ, rows, columns, a, ld, s, u, ldu, v, ldv, l, j)
            }
            _ => {
                let (a, s, u, v) = (at as *const f32, st as *const f32, ut as *const f32, vt as *const f32);
                let l = &mut length;
                sys::cusolverDnSgesvdj_bufferSize(h, VECTORS, econ, rows, columns, a, ld, s, u, ldu, v, ldv, l, j)
            }
        }
    })?;
    let (work, info) = (device.alloc::<T>(length as usize)?, device.zeros::<i32>(1)?);
    let (w, i) = (work.address(0), info.address(0) as *mut i32);
    // SAFETY: as above.
    device.solver("cusolverDn*gesvdj", |h| unsafe {
        let j = parameters.0;
        match T::DTYPE {
            DType::F64 => {
                let (a, s, u, v) = (at as *mut f64, st as *mut f64, ut as *mut f64, vt as *mut f64);
                let w = w as *mut f64;
                sys::cusolverDnDgesvdj(h, VECTORS, econ, rows, columns, a, ld, s, u, ldu, v, ldv, w, length, i, j)
            }
            _ => {
                let (a, s, u, v) = (at as *mut f32, st as *mut f32, ut as *mut f32, vt as *mut f32);
                let w = w as *mut f32;
                sys::cusolverDnSgesvdj(h, VECTORS, econ, rows, columns, a, ld, s, u, ldu, v, ldv, w, length, i, j)
            }
        }
    })?;
    if finish("gesvdj", &info)? != 0 {
        return Err(Error::NoConvergence { op: "gesvdj" });
    }
    let mut s = vec![T::zeroed(); n];
    device.download(&values, 0, &mut s)?;
    Ok((u, s, v))
}

/// cuSOLVER's parameters of a Jacobi SVD, at their defaults.
struct Jacobi(sys::gesvdjInfo_t);

impl Jacobi {
    fn new(device: &super::Device) -> Result<Self> {
        let mut info = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        device.solver("cusolverDnCreateGesvdjInfo", |_| unsafe { sys::cusolverDnCreateGesvdjInfo(&mut info) })?;
        Ok(Jacobi(info))
    }
}

impl Drop for Jacobi {
    fn drop(&mut self) {
        // SAFETY: created above, destroyed once.
        let _ = unsafe { sys::cusolverDnDestroyGesvdjInfo(self.0) };
    }
}
