//! The one error type. Each variant carries the numbers that were wrong; its text is one line that says what, where,
//! and what to do.
//!
//! Variants are built by cold constructors so that formatting never sits in a hot function.

use std::fmt;

use crate::dtype::DType;

/// An error of this crate. Bad input never panics: it gives one of these.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Two sizes that must agree do not.
    Shape {
        /// The operation that was asked for.
        op: &'static str,
        /// The sizes that the operation needs.
        want: String,
        /// The sizes that it was given.
        got: String,
    },
    /// A dimension is zero.
    Empty {
        /// The shape that was given.
        shape: Vec<usize>,
    },
    /// The number of elements of a shape, or of their bytes, does not fit the address space.
    TooLarge {
        /// The shape that was given.
        shape: Vec<usize>,
    },
    /// Strides place two elements at one address.
    Overlap {
        /// The shape that was given.
        shape: Vec<usize>,
        /// The strides that were given, in elements.
        strides: Vec<isize>,
    },
    /// The axes of a tensor cannot be merged into rows and columns without a copy.
    Layout {
        /// The shape that was given.
        shape: Vec<usize>,
        /// The strides that were given, in elements.
        strides: Vec<isize>,
    },
    /// A byte slice does not start at a multiple of the element's alignment.
    Misaligned {
        /// The element type.
        dtype: &'static str,
        /// The alignment that the type needs, in bytes.
        align: usize,
        /// The address of the first byte modulo that alignment.
        remainder: usize,
    },
    /// The input has a NaN or an infinity.
    NotFinite {
        /// The row of the first such element.
        row: usize,
        /// The column of the first such element.
        col: usize,
        /// The value of the first such element.
        value: f64,
    },
    /// A rank is outside `1..=min(m, n)`.
    Rank {
        /// The rank that was asked for.
        rank: usize,
        /// The largest possible rank.
        max: usize,
    },
    /// An option is outside its range, or does not go with the other options.
    Option {
        /// The name of the option.
        name: &'static str,
        /// The value that was given; `None` if the option is at fault whatever its value.
        value: Option<String>,
        /// The values that are allowed or, without a value, what is wrong with the option and what to do.
        want: &'static str,
    },
    /// A value is larger than the arithmetic can compute with, or so small that it would be lost.
    Range {
        /// What the value is of.
        what: &'static str,
        /// The value.
        value: f64,
        /// The type of the arithmetic.
        dtype: DType,
    },
    /// No Hadamard matrix of this crate has the length of a vector.
    Order {
        /// The length of the vector.
        n: usize,
    },
    /// A scheme of rotations does not take vectors of a length.
    Rotation {
        /// The name of the scheme.
        scheme: &'static str,
        /// The length of the vectors.
        dim: usize,
        /// The longest length below it that the scheme takes.
        below: Option<usize>,
        /// The shortest length above it that the scheme takes.
        above: Option<usize>,
    },
    /// An iterative kernel did not converge. This was never seen on finite input.
    NoConvergence {
        /// The name of the kernel.
        op: &'static str,
    },
    /// The memory limit is below what the most frugal way of doing the work needs.
    Memory {
        /// The limit that was given, in bytes.
        limit: usize,
        /// The least limit that would do, in bytes.
        least: usize,
    },
    /// Code that a batch runs panicked, which is a bug. The panic fails one tensor and not the batch.
    Internal {
        /// The message of the panic.
        what: String,
    },
    /// The work was cancelled by the caller; see [`Cancel`](crate::operator::Cancel).
    Cancelled,
    /// A rank of a distributed factorization could not do its part. All ranks end with this error.
    Remote {
        /// The number of the rank.
        rank: usize,
        /// What happened there.
        what: String,
    },
    /// A device cannot be used, or failed.
    Device {
        /// The kind of failure.
        fault: DeviceFault,
        /// What the device was asked for, and what it answered.
        detail: String,
    },
    /// A file cannot be read or written, or its content is wrong.
    File {
        /// The path of the file.
        path: String,
        /// What is wrong with the file and what to do.
        why: String,
    },
    /// Bytes do not have the format that they should have.
    Format {
        /// The format that they should have.
        what: &'static str,
        /// What is wrong with the bytes.
        why: String,
    },
}

/// The reason why a device cannot be used, or the way in which it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceFault {
    /// This build of the crate has no support for devices.
    NotBuilt,
    /// The crate was built without a compiler for its kernels, or for other cards than this one.
    NoKernels,
    /// The driver is not installed.
    NoDriver,
    /// The driver lacks functions that this crate calls.
    DriverTooOld,
    /// A library that comes with the toolkit is not installed.
    NoLibrary,
    /// The machine has no such device.
    NoDevice,
    /// The memory of the device, or the limit set for it, is exhausted. The device remains usable.
    OutOfMemory,
    /// A kernel could not be started, or failed. The device has to be opened again; after an access to memory that is
    /// not its own, CUDA wants a new process for that.
    Launch,
    /// The driver or the device went away. The device has to be opened again.
    Lost,
    /// The driver or its libraries answered with any other failure.
    Other,
}

impl DeviceFault {
    /// Returns what a user can do about the failure.
    const fn advice(self) -> &'static str {
        match self {
            DeviceFault::NotBuilt => "build with --features cuda, or use the CPU",
            DeviceFault::NoKernels => {
                "build with nvcc at hand (CUDA_HOME) and the card in TENSORSLIM_CUDA_ARCHS, or use the CPU"
            }
            DeviceFault::NoDriver => "install the NVIDIA driver, or use the CPU",
            DeviceFault::DriverTooOld => "install a newer NVIDIA driver, or use the CPU",
            DeviceFault::NoLibrary => "install the CUDA toolkit's libraries, or use the CPU",
            DeviceFault::NoDevice => "see nvidia-smi for what there is, or use the CPU",
            DeviceFault::OutOfMemory => "set a memory limit so that the matrix is streamed, or use the CPU",
            DeviceFault::Launch | DeviceFault::Lost => {
                "open the device again, in a new process if need be, or use the CPU"
            }
            DeviceFault::Other => "use the CPU, and report this",
        }
    }
}

/// The most digits of a number in an error text; longer numbers are written with an exponent.
const MAX_DIGITS: usize = 20;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an [`Error::Shape`] of the operation `op`.
    #[cold]
    pub(crate) fn shape(op: &'static str, want: impl fmt::Display, got: impl fmt::Display) -> Self {
        Error::Shape { op, want: want.to_string(), got: got.to_string() }
    }

    /// Makes an [`Error::Option`] for a value that is not allowed; `want` completes the sentence "give …".
    #[cold]
    pub(crate) fn option(name: &'static str, value: impl fmt::Display, want: &'static str) -> Self {
        let mut value = value.to_string();
        // Hundreds of digits say less than an exponent.
        if let Some(x) = value.parse::<f64>().ok().filter(|_| value.len() > MAX_DIGITS) {
            value = format!("{x:e}");
        }
        Error::Option { name, value: Some(value), want }
    }

    /// Makes an [`Error::Option`] for an option that does not go with the others; `why` is the predicate of a sentence
    /// that starts with its name.
    #[cold]
    pub(crate) fn unsuited(name: &'static str, why: &'static str) -> Self {
        Error::Option { name, value: None, want: why }
    }

    /// Makes an [`Error::Device`].
    #[cfg(feature = "linalg")]
    #[cold]
    pub(crate) fn device(fault: DeviceFault, detail: impl fmt::Display) -> Self {
        Error::Device { fault, detail: detail.to_string() }
    }

    /// Makes an [`Error::File`], with the path made printable.
    #[cold]
    pub fn file(path: &std::path::Path, why: impl fmt::Display) -> Self {
        Error::File { path: path.display().to_string(), why: why.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape { op, want, got } => write!(f, "{op}: needs {want}, got {got}"),
            Error::Empty { shape } => write!(f, "shape {shape:?} has a zero dimension; nothing can be factored"),
            Error::TooLarge { shape } => write!(f, "shape {shape:?} does not fit the address space"),
            Error::Overlap { shape, strides } => write!(
                f,
                "strides {strides:?} over shape {shape:?} visit an element twice; \
                 copy the tensor to a contiguous one first"
            ),
            Error::Layout { shape, strides } => write!(
                f,
                "axes of shape {shape:?} with strides {strides:?} do not merge into one row and one column stride; \
                 copy the tensor to a contiguous one first"
            ),
            Error::Misaligned { dtype, align, remainder } => write!(
                f,
                "bytes of {dtype} start {remainder} past a multiple of {align}; copy them to an aligned buffer"
            ),
            Error::NotFinite { row, col, value } => {
                write!(f, "element ({row}, {col}) is {value}; the matrix must be finite")
            }
            Error::Rank { rank, max } => write!(f, "rank {rank} is outside 1..={max}"),
            Error::Option { name, value: Some(value), want } => {
                write!(f, "{name} = {value} is not allowed; give {want}")
            }
            Error::Option { name, value: None, want } => write!(f, "{name} {want}"),
            Error::Range { what, value, dtype } => {
                let advice =
                    if *dtype == DType::F64 { "multiply the data by a power of two" } else { "use f64 arithmetic" };
                write!(f, "{what} is {value:e}, out of the range of {dtype} arithmetic; {advice}")
            }
            Error::Order { n } => {
                write!(
                    f,
                    "no Hadamard matrix of order {n} here; fwht::Order::nearest finds the nearest lengths that work"
                )
            }
            Error::Rotation { scheme, dim, below, above } => {
                write!(f, "no rotation by {scheme} of {dim} elements; ")?;
                match (below, above) {
                    (Some(below), Some(above)) => write!(f, "the nearest lengths are {below} and {above}"),
                    (Some(only), None) | (None, Some(only)) => write!(f, "the nearest length is {only}"),
                    (None, None) => write!(f, "no length works; give another block"),
                }
            }
            Error::NoConvergence { op } => write!(f, "{op} did not converge"),
            Error::Memory { limit, least } => {
                write!(f, "does not fit the memory limit of {limit} bytes; the least that would do is {least}")
            }
            Error::Internal { what } => write!(f, "internal error: {what}; please report it"),
            Error::Cancelled => f.write_str("stopped before it was done, as asked"),
            Error::Remote { rank, what } => write!(f, "rank {rank}: {what}"),
            Error::Device { fault, detail } => write!(f, "GPU: {detail}; {}", fault.advice()),
            Error::File { path, why } => write!(f, "{path}: {why}"),
            Error::Format { what, why } => write!(f, "these bytes are no {what}: {why}"),
        }
    }
}

impl std::error::Error for Error {}
