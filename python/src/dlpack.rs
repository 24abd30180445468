//! Reads tensors of other libraries in place, by the DLPack protocol (versions 0.x and 1.x, on the CPU).
//!
//! A producer hands over a capsule around a C structure. The capsule is kept as it is and never renamed, so that its
//! own destructor frees the tensor when Python drops it: this is what the protocol says of a capsule that nobody
//! consumed.

use std::ffi::{CStr, c_void};

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use tensorslim::DType;

/// A place where a tensor lives: the kind of device, and its number.
#[repr(C)]
#[derive(Clone, Copy)]
struct Device {
    kind: i32,
    id: i32,
}

/// An element type: the kind, the bits of a lane, the number of lanes.
#[repr(C)]
#[derive(Clone, Copy)]
struct ElementType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLTensor` of the protocol.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    ndim: i32,
    dtype: ElementType,
    shape: *const i64,
    /// The strides in elements; null for a contiguous row-major tensor.
    strides: *const i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, of the protocol before version 1: the tensor comes first.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: *const c_void,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: *const c_void,
    flags: u64,
    tensor: Tensor,
}

const OLD_NAME: &CStr = c"dltensor";
const NEW_NAME: &CStr = c"dltensor_versioned";
const READ_ONLY: u64 = 1;
/// Memory of the CPU, and memory of the CPU that is pinned for CUDA or ROCm.
const HOST: [i32; 3] = [1, 3, 11];
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;

/// A tensor as a capsule describes it. The pointers are valid as long as the capsule lives.
pub(crate) struct Description {
    pub(crate) first: *mut u8,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<isize>,
    pub(crate) writable: bool,
}

/// Asks a tensor of another library for its capsule.
///
/// # Errors
/// `TypeError` for a tensor that is not in the memory of the CPU; whatever the producer raises.
pub(crate) fn capsule<'py>(x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = x.py();
    let (kind, _): (i32, i32) = x.call_method0("__dlpack_device__")?.extract()?;
    if !HOST.contains(&kind) {
        let why = match kind {
            2 => "this tensor is in the memory of a CUDA device; move it with .cpu() first",
            _ => "this tensor is not in the memory of the CPU; move it there first",
        };
        return Err(PyTypeError::new_err(why));
    }
    let version = pyo3::types::PyDict::new(py);
    version.set_item("max_version", (1, 0))?;
    match x.call_method("__dlpack__", (), Some(&version)) {
        // Producers of the first protocol do not know the argument.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => x.call_method0("__dlpack__"),
        result => result,
    }
}

/// Reads what a capsule says of its tensor.
///
/// # Errors
/// `TypeError` for elements that are not f16, bf16, f32 or f64, `BufferError` for a capsule of another kind.
pub(crate) fn describe(capsule: &Bound<'_, PyAny>) -> PyResult<Description> {
    let named = |name: &CStr| {
        // SAFETY: the object is alive, and the function takes any object and any C string.
        unsafe { ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) == 1 }
    };
    let pointer = |name: &CStr| {
        // SAFETY: the object is a capsule of this name, as `PyCapsule_IsValid` has just found; its pointer is not null.
        unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr()) }
    };
    let (tensor, writable) = if named(NEW_NAME) {
        // SAFETY: a capsule of this name holds a `DLManagedTensorVersioned`, which lives as long as the capsule. Its
        // first two numbers are in the same place in every version.
        let versioned = unsafe { &*pointer(NEW_NAME).cast::<Versioned>() };
        if versioned.major != 1 {
            let (major, minor) = (versioned.major, versioned.minor);
            return Err(PyBufferError::new_err(format!("DLPack {major}.{minor} is not known here, only 0.x and 1.x")));
        }
        (&versioned.tensor, versioned.flags & READ_ONLY == 0)
    } else if named(OLD_NAME) {
        // SAFETY: a capsule of this name holds a `DLManagedTensor`, which lives as long as the capsule.
        (unsafe { &(*pointer(OLD_NAME).cast::<Managed>()).tensor }, true)
    } else {
        return Err(PyBufferError::new_err("__dlpack__ returned no capsule named dltensor or dltensor_versioned"));
    };
    if !HOST.contains(&tensor.device.kind) {
        return Err(PyTypeError::new_err("this tensor is not in the memory of the CPU; move it there first"));
    }
    let dtype = match (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) {
        (FLOAT, 16, 1) => DType::F16,
        (BFLOAT, 16, 1) => DType::BF16,
        (FLOAT, 32, 1) => DType::F32,
        (FLOAT, 64, 1) => DType::F64,
        (code, bits, _) => {
            let what = format!("elements of DLPack type {code} with {bits} bits are not supported");
            return Err(PyTypeError::new_err(format!("{what}; give float16, bfloat16, float32 or float64")));
        }
    };
    let axes = usize::try_from(tensor.ndim).map_err(|_| PyBufferError::new_err("a negative number of axes"))?;
    let numbers = |pointer: *const i64| -> &[i64] {
        if axes == 0 || pointer.is_null() {
            return &[];
        }
        // SAFETY: the protocol says that a shape, and strides that are not null, have one number for each axis and live
        // as long as the capsule.
        unsafe { std::slice::from_raw_parts(pointer, axes) }
    };
    let shape: Vec<usize> = numbers(tensor.shape)
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| PyBufferError::new_err("a negative dimension")))
        .collect::<PyResult<_>>()?;
    let mut strides: Vec<isize> = numbers(tensor.strides).iter().map(|&stride| stride as isize).collect();
    if strides.len() != shape.len() {
        strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as isize;
        }
    }
    let first = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    Ok(Description { first, dtype, shape, strides, writable })
}
