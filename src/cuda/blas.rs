//! Calls GEMM, SYRK, TRSM, AXPY and COPY of cuBLAS on column-major device memory.
//!
//! All products are `cublasGemmEx` with sums in f32 (f64 for f64). f32 panels are multiplied in f32 unless
//! [`Device::allow_tf32`](super::Device::allow_tf32) says otherwise; f16 and bf16 go through the tensor cores, whose
//! products are exact.

use std::ffi::{c_int, c_void};

use bytemuck::Pod;
use cudarc::cublas::sys::{
    self, cublasComputeType_t as Compute, cublasDiagType_t as Diagonal, cublasFillMode_t as Fill,
    cublasGemmAlgo_t as Algorithm, cublasOperation_t as Operation, cublasSideMode_t as Side, cudaDataType as Type,
};

use super::device::Device;
use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::DType;

/// A column-major matrix in device memory, as an argument of cuBLAS.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub(super) at: u64,
    pub(super) dtype: DType,
    pub(super) ld: usize,
    pub(super) transposed: bool,
}

impl Operand {
    pub(super) fn t(self) -> Self {
        Operand { transposed: !self.transposed, ..self }
    }

    fn operation(self) -> Operation {
        if self.transposed { Operation::CUBLAS_OP_T } else { Operation::CUBLAS_OP_N }
    }

    fn data_type(self) -> Type {
        match self.dtype {
            DType::F16 => Type::CUDA_R_16F,
            DType::BF16 => Type::CUDA_R_16BF,
            DType::F32 => Type::CUDA_R_32F,
            DType::F64 => Type::CUDA_R_64F,
        }
    }
}

/// Converts a count to the 32 bits of cuBLAS; [`Error::TooLarge`] if it does not fit.
pub(super) fn int(n: usize) -> Result<c_int> {
    c_int::try_from(n).map_err(|_| Error::TooLarge { shape: vec![n] })
}

fn pointer<T: Pod>(x: &T) -> *const c_void {
    std::ptr::from_ref(x).cast()
}

/// Computes `C = alpha · op(A) op(B) + beta · C`, with `C` of `m × n` in arithmetic `T` and `k` terms in each sum.
pub(super) fn gemm<T: Scalar>(
    device: &Device,
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Operand,
    b: Operand,
    beta: T,
    c: Operand,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    let compute = match T::DTYPE {
        DType::F64 => Compute::CUBLAS_COMPUTE_64F,
        _ if a.dtype == DType::F32 && device.tf32_allowed() => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
        _ => Compute::CUBLAS_COMPUTE_32F,
    };
    let (m, n, k) = (int(m)?, int(n)?, int(k)?);
    let (lda, ldb, ldc) = (int(a.ld)?, int(b.ld)?, int(c.ld)?);
    device.blas("cublasGemmEx", |handle| {
        // SAFETY: `a`, `b` and `c` lie in live panels of this device, whose callers derive counts and leading
        // dimensions from the shapes of the panels, so that every access is within them; the types passed are those of
        // the operands. The scalars are on the host, as the default pointer mode asks, and live through the call.
        unsafe {
            sys::cublasGemmEx(
                handle,
                a.operation(),
                b.operation(),
                m,
                n,
                k,
                pointer(&alpha),
                a.at as *const c_void,
                a.data_type(),
                lda,
                b.at as *const c_void,
                b.data_type(),
                ldb,
                pointer(&beta),
                c.at as *mut c_void,
                c.data_type(),
                ldc,
                compute,
                Algorithm::CUBLAS_GEMM_DEFAULT,
            )
        }
    })
}

/// Computes the lower triangle of `C = op(A) op(A)ᵀ + beta · C`, with `C` of `n × n` and `k` terms in each sum; `A` and
/// `C` are in `T`.
pub(super) fn syrk<T: Scalar>(device: &Device, (n, k): (usize, usize), a: Operand, beta: T, c: Operand) -> Result<()> {
    let (n, k, lda, ldc) = (int(n)?, int(k)?, int(a.ld)?, int(c.ld)?);
    let (one, lower) = (T::one(), Fill::CUBLAS_FILL_MODE_LOWER);
    device.blas("cublas*syrk", |handle| {
        // SAFETY: the pointers are to elements of `T`, which the match names. `a` and `c` lie in live panels of this
        // device, from whose shapes the callers derive `n`, `k` and the leading dimensions. The scalars on the host
        // live through the call.
        unsafe {
            match T::DTYPE {
                DType::F64 => sys::cublasDsyrk_v2(
                    handle,
                    lower,
                    a.operation(),
                    n,
                    k,
                    pointer(&one).cast(),
                    a.at as *const f64,
                    lda,
                    pointer(&beta).cast(),
                    c.at as *mut f64,
                    ldc,
                ),
                _ => sys::cublasSsyrk_v2(
                    handle,
                    lower,
                    a.operation(),
                    n,
                    k,
                    pointer(&one).cast(),
                    a.at as *const f32,
                    lda,
                    pointer(&beta).cast(),
                    c.at as *mut f32,
                    ldc,
                ),
            }
        }
    })
}

/// Computes `B <- B L⁻ᵀ`, with `B` of `m × n` and `L` of `n × n` lower triangular, both in `T`.
pub(super) fn divide<T: Scalar>(device: &Device, (m, n): (usize, usize), l: Operand, b: Operand) -> Result<()> {
    let (m, n, ldl, ldb) = (int(m)?, int(n)?, int(l.ld)?, int(b.ld)?);
    let one = T::one();
    let (side, lower, transposed) = (Side::CUBLAS_SIDE_RIGHT, Fill::CUBLAS_FILL_MODE_LOWER, Operation::CUBLAS_OP_T);
    let diagonal = Diagonal::CUBLAS_DIAG_NON_UNIT;
    device.blas("cublas*trsm", |handle| {
        // SAFETY: the pointers are to elements of `T`, which the match names. `l` and `b` lie in live panels of this
        // device, from whose shapes the callers derive `m`, `n` and the leading dimensions. The scalar on the host
        // lives through the call.
        unsafe {
            match T::DTYPE {
                DType::F64 => sys::cublasDtrsm_v2(
                    handle,
                    side,
                    lower,
                    transposed,
                    diagonal,
                    m,
                    n,
                    pointer(&one).cast(),
                    l.at as *const f64,
                    ldl,
                    b.at as *mut f64,
                    ldb,
                ),
                _ => sys::cublasStrsm_v2(
                    handle,
                    side,
                    lower,
                    transposed,
                    diagonal,
                    m,
                    n,
                    pointer(&one).cast(),
                    l.at as *const f32,
                    ldl,
                    b.at as *mut f32,
                    ldb,
                ),
            }
        }
    })
}

/// Elements of `T` in device memory at a constant distance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strided {
    pub(super) at: u64,
    pub(super) stride: usize,
}

/// Computes `y <- y + alpha · x` for n elements of `T`.
pub(super) fn axpy<T: Scalar>(device: &Device, n: usize, alpha: T, x: Strided, y: Strided) -> Result<()> {
    let (n, dx, dy) = (int(n)?, int(x.stride)?, int(y.stride)?);
    device.blas("cublas*axpy", |handle| {
        // SAFETY: `x` and `y` name n elements each of the type that the match names, at the distance that is passed;
        // the callers derive both from the shapes of live panels. `alpha` is on the host and lives through the call.
        unsafe {
            let alpha = pointer(&alpha);
            match T::DTYPE {
                DType::F64 => {
                    sys::cublasDaxpy_v2(handle, n, alpha.cast(), x.at as *const f64, dx, y.at as *mut f64, dy)
                }
                _ => sys::cublasSaxpy_v2(handle, n, alpha.cast(), x.at as *const f32, dx, y.at as *mut f32, dy),
            }
        }
    })
}

/// Copies `y <- x` for n elements of `T`.
pub(super) fn copy<T: Scalar>(device: &Device, n: usize, x: Strided, y: Strided) -> Result<()> {
    let (n, dx, dy) = (int(n)?, int(x.stride)?, int(y.stride)?);
    device.blas("cublas*copy", |handle| {
        // SAFETY: `x` and `y` name n elements each of the type that the match names, at the distance that is passed;
        // the callers derive both from the shapes of live panels.
        unsafe {
            match T::DTYPE {
                DType::F64 => sys::cublasDcopy_v2(handle, n, x.at as *const f64, dx, y.at as *mut f64, dy),
                _ => sys::cublasScopy_v2(handle, n, x.at as *const f32, dx, y.at as *mut f32, dy),
            }
        }
    })
}
