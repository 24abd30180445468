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

/// Reads the status word of a factorization, which waits for it.
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
    // SAFETY: `at` is the device address of `a`, n × n with leading dimension `ld`, in the type that the match names;
    // `length` is a place for the answer.
    device.solver("cusolverDn*potrf_bufferSize", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDpotrf_bufferSize(h, LOWER, n, at as *mut f64, ld, &mut length),
            _ => sys::cusolverDnSpotrf_bufferSize(h, LOWER, n, at as *mut f32, ld, &mut length),
        }
    })?;
    let (work, info) = (device.alloc::<T>(length as usize)?, device.zeros::<i32>(1)?);
    let (w, i) = (work.address(0), info.address(0) as *mut i32);
    // SAFETY: the matrix is the one that the size was asked for, in the same type; the workspace has the `length`
    // elements that cuSOLVER asked for, and `i` points to one i32. All are freed later than the call on its stream.
    device.solver("cusolverDn*potrf", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDpotrf(h, LOWER, n, at as *mut f64, ld, w as *mut f64, length, i),
            _ => sys::cusolverDnSpotrf(h, LOWER, n, at as *mut f32, ld, w as *mut f32, length, i),
        }
    })?;
    if finish("potrf", &info)? == 0 { Ok(()) } else { Err(Error::NoConvergence { op: "potrf" }) }
}

/// Factors `a` by Householder QR: R above the diagonal, reflectors below it (GEQRF). Returns their factors τ.
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
    // SAFETY: `at` is the device address of `a`, m × n with leading dimension `ld`, in the type that the match names;
    // `length` is a place for the answer.
    device.solver("cusolverDn*geqrf_bufferSize", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDgeqrf_bufferSize(h, m, n, at as *mut f64, ld, &mut length),
            _ => sys::cusolverDnSgeqrf_bufferSize(h, m, n, at as *mut f32, ld, &mut length),
        }
    })?;
    let (work, info) = (device.alloc::<T>(length as usize)?, device.zeros::<i32>(1)?);
    let (w, i) = (work.address(0), info.address(0) as *mut i32);
    // SAFETY: the matrix is the one that the size was asked for, in the same type; τ has n elements, the workspace the
    // `length` elements that cuSOLVER asked for, and `i` points to one i32.
    device.solver("cusolverDn*geqrf", |h| unsafe {
        match T::DTYPE {
            DType::F64 => sys::cusolverDnDgeqrf(h, m, n, at as *mut f64, ld, t as *mut f64, w as *mut f64, length, i),
            _ => sys::cusolverDnSgeqrf(h, m, n, at as *mut f32, ld, t as *mut f32, w as *mut f32, length, i),
        }
    })?;
    finish("geqrf", &info)?;
    Ok(tau)
}

/// Replaces the reflectors of a [`geqrf`] by the orthonormal columns that they stand for (ORGQR).
///
/// # Errors
/// [`Error::Device`].
pub fn orgqr<T: Scalar>(a: &mut DevicePanel<T>, tau: &DevicePanel<T>) -> Result<()> {
    let device = a.device().clone();
    let (m, n, ld, at, t) = (int(a.nrows())?, int(a.ncols())?, int(a.ld())?, a.address(0), tau.address(0));
    let mut length = 0;
    // SAFETY: `at` is the device address of the m × n reflectors with leading dimension `ld`, and `t` that of their n
    // factors, in the type that the match names; `length` is a place for the answer.
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
    // SAFETY: matrix and factors are those that the size was asked for, in the same type; the workspace has the
    // `length` elements that cuSOLVER asked for, and `i` points to one i32.
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

/// Computes the eigenvalues, nondecreasing, of the symmetric matrix whose lower triangle is in `a`, and replaces `a` by
/// its orthonormal eigenvectors (SYEVD).
///
/// # Errors
/// [`Error::Shape`] unless `a` is square; [`Error::NoConvergence`] if cuSOLVER does not converge; [`Error::Device`].
pub fn syevd<T: Scalar>(a: &mut DevicePanel<T>) -> Result<Vec<T>> {
    check_square("syevd", a)?;
    let device = a.device().clone();
    let values = device.zeros::<T>(a.nrows())?;
    let (n, ld, at, v) = (int(a.nrows())?, int(a.ld())?, a.address(0), values.address(0));
    let mut length = 0;
    // SAFETY: `at` is the device address of `a`, n × n with leading dimension `ld`, and `v` that of n values, in the
    // type that the match names; `length` is a place for the answer.
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
    // SAFETY: matrix and values are those that the size was asked for, in the same type; the workspace has the `length`
    // elements that cuSOLVER asked for, and `i` points to one i32.
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

/// Computes `a = U diag(s) Vᵀ` by Jacobi rotations, `s` nonincreasing; `a` is used up (GESVDJ). Returns `(U, s, V)`,
/// with U of the shape of `a` and V of `n × n`.
///
/// # Errors
/// [`Error::Shape`] if `a` is wider than tall; [`Error::NoConvergence`] if cuSOLVER does not converge;
/// [`Error::Device`].
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
    // SAFETY: the addresses are those of `a` and U, m × n, V, n × n, and n values, with their leading dimensions, in
    // the type that the match names; `j` lives as long as `parameters`, and `length` is a place for the answer.
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
    // SAFETY: matrices, values and `j` are those that the size was asked for, in the same type; the workspace has the
    // `length` elements that cuSOLVER asked for, and `i` points to one i32.
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
        // SAFETY: `info` is a valid place for the handle.
        device.solver("cusolverDnCreateGesvdjInfo", |_| unsafe { sys::cusolverDnCreateGesvdjInfo(&mut info) })?;
        Ok(Jacobi(info))
    }
}

impl Drop for Jacobi {
    fn drop(&mut self) {
        // SAFETY: the handle was created by `new`, and only this value destroys it, once.
        let _ = unsafe { sys::cusolverDnDestroyGesvdjInfo(self.0) };
    }
}
