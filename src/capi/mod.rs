//! The C interface (feature `capi`): this library behind C names. `include/tensorslim.h` is made of these files by
//! cbindgen and is its documentation; nothing here is for Rust code, which calls the crate itself.
//!
//! ```text
//!   status          codes, the thread's last message, the guard of every entry     version
//!   matrix          tensorslim_matrix: an address, a shape, strides, an element type
//!   kinds           numbers of methods and sketches
//!   calibration     statistics of inputs or of output gradients
//!   svd             the options of a factorization, the memory it takes, the factorization
//!   rows            the factorization of a matrix that a function of the caller reads
//!   factors         what came out: U, s, Vᵀ, two layers, numbers and notes of the report
//!   budget          one budget for many layers
//!   transforms      Walsh-Hadamard transforms, rotations, orthonormal bases
//! ```
//!
//! **Ownership.** What a function named `.._new`, `tensorslim_factor..`, `.._truncate`, `.._range` or `.._from_bytes` writes to its
//! last argument is a box that belongs to the caller, until the `.._free` of its kind takes it. Matrices and buffers
//! are always the caller's; no address of them is kept after a call. Texts belong to a handle or to a thread.
//!
//! **Why this way.** A kind of element or a rule arrives as an `int32_t` and not as an enum, because a C program may
//! pass any number and a Rust enum of an unknown value is undefined behaviour. A report is copied up to the size that
//! the caller has compiled, so that a later version may append fields. Every entry runs in one guard, which turns an
//! error into its code, stops a panic, and leaves the text to the thread.

mod budget;
mod calibration;
mod factors;
mod kinds;
mod matrix;
mod rows;
mod status;
mod svd;
mod transforms;
