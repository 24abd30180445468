//! NumPy's `.npy` files (feature `npy`): one array, read whole, in pieces, or mapped, and written.
//!
//! ```text
//!   \x93NUMPY  major minor  header length  {'descr': '<f2', 'fortran_order': False, 'shape': (m, n), }  m·n elements
//!   6 bytes    1     1      2 (v1), 4      padded to a multiple of 64                                   as in memory
//! ```
//!
//! [`Array::read`] reads the elements straight into one aligned buffer: as many bytes of memory as the file has, and
//! one pass over it. Fortran order becomes strides and costs nothing; foreign byte order is swapped in place.
//! [`Array::read_c_order`] puts each element where C order has it, for tensors of more than two axes, whose Fortran
//! order cannot be merged into two strides. [`Stream`] reads in blocks of rows and holds none of them; [`Mapped`]
//! leaves the reading to the system; [`Description`] tells what a file holds without reading an element.
//!
//! A path may name a [member of an archive](crate::npz): `weights.npz/layer.0`. Its checksum is compared where it is read
//! whole.
//!
//! A file is hostile input. The parser of `npyz` takes exponential time for nested brackets, multiplies the shape
//! unchecked, and allocates the length that a header claims. So before it sees a header, the header is held to NumPy's
//! own limit on length, to the depth and the characters that a description of an array can have, and to a shape of at
//! most 2^63 elements. Nothing of the array's size is allocated before that size was found to be the size of the file.
//!
//! bfloat16 has no type string in NumPy. `ml_dtypes` saves it as `'<V2'`, two bytes without a meaning, and so does
//! [`write()`]; [`Array::read_as`] reads it back, because the caller then says what the bytes are. Some programs write
//! the name `'bfloat16'`, which needs no help. Format: NumPy Enhancement Proposal 1.

#[cfg(feature = "linalg")]
mod stream;
pub(crate) mod zip;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use npyz::{Endianness, NpyHeader, Order, TypeChar};

use crate::error::{Error, Result};
use crate::tensor::{DType, Element, Matrix, TensorRef, map};
#[cfg(feature = "linalg")]
pub use stream::Stream;

/// The alignment of the elements in memory: a cache line, and a register of the widest instruction set.
const ALIGN: usize = 64;
/// The longest header that is read, in bytes: the limit of `numpy.load`. The header of a matrix takes 118.
const MAX_HEADER: usize = 10_000;
/// The deepest brackets in a header. Structured elements have a dict with a list of tuples with a shape; their error
/// says so.
const MAX_DEPTH: usize = 4;
/// The most axes, as in NumPy 2.
const MAX_AXES: usize = 64;
/// The bytes that are read at a time where elements change their order: whole elements of every type.
const BLOCK: usize = 1 << 20;

/// An array read from a file: element type, shape, order, and its bytes, aligned and in native byte order.
#[derive(Debug)]
pub struct Array {
    dtype: DType,
    shape: Vec<usize>,
    fortran: bool,
    /// The elements are at `offset..`, where an address is a multiple of [`ALIGN`]. Never cloned or grown.
    buffer: Vec<u8>,
    offset: usize,
}

impl Array {
    /// Reads a `.npy` file of f16, f32, f64 or bfloat16 by name, in either byte order, C or Fortran order, version 1, 2
    /// or 3.
    ///
    /// # Errors
    /// [`Error::File`], with the path, what is wrong and what to do: no such file, a directory or a pipe, not a
    /// `.npy` file, a damaged header, another element type, an array without elements or axes, fewer or more bytes
    /// than the shape needs, more than there is memory, a file that another program changes while it is read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        read(path.as_ref(), None)
    }

    /// Reads a `.npy` file whose elements are bits of `dtype`, whatever their type is called: void (`'<V2'`, how
    /// `ml_dtypes` saves bfloat16), integers (`'<u2'`, `'<i2'`) of its size, or `dtype` itself.
    ///
    /// # Errors
    /// [`Error::File`] for the reasons of [`read`](Self::read), and for any other element type.
    pub fn read_as(path: impl AsRef<Path>, dtype: DType) -> Result<Self> {
        read(path.as_ref(), Some(dtype))
    }

    /// Reads a `.npy` file into C order, so that its axes can be merged ([`TensorRef::matricize`]). It takes 1 MiB of
    /// memory more than the array. The type of the elements is as in [`read`](Self::read) or, with `bits_of`, in
    /// [`read_as`](Self::read_as).
    ///
    /// # Errors
    /// [`Error::File`] for the reasons of [`read`](Self::read) or [`read_as`](Self::read_as).
    pub fn read_c_order(path: impl AsRef<Path>, bits_of: Option<DType>) -> Result<Self> {
        let path = path.as_ref();
        let (mut file, header) = open_checked(path, bits_of)?;
        let seen = FileState::new(&file);
        let array = if header.fortran { load_reordered(&mut file, header) } else { load(&mut file, header) };
        array.and_then(|array| seen.check(&file).map(|()| array)).map_err(|why| Error::file(path, why))
    }

    /// Reads an array from the bytes of a `.npy` file. The type of the elements is as in [`read`](Self::read) or, with
    /// `bits_of`, in [`read_as`](Self::read_as).
    ///
    /// # Errors
    /// [`Error::File`] for the reasons of [`read`](Self::read) or [`read_as`](Self::read_as), with `.npy bytes` in
    /// place of a path.
    pub fn from_bytes(mut bytes: &[u8], bits_of: Option<DType>) -> Result<Self> {
        let len = bytes.len() as u64;
        let array = parse_header(&mut bytes, len, bits_of).and_then(|header| load(&mut bytes, header));
        array.map_err(|why| Error::file(Path::new(".npy bytes"), why))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether the first axis, not the last, is the one of stride 1.
    pub fn is_fortran(&self) -> bool {
        self.fortran
    }

    /// The bytes of the elements, in the order of the axes that [`is_fortran`](Self::is_fortran) tells and in native
    /// byte order, aligned to 64 bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.offset..]
    }

    /// Returns the array as a tensor over the same memory; Fortran order shows as strides.
    ///
    /// # Errors
    /// An array that was read gives none.
    pub fn tensor(&self) -> Result<TensorRef<'_>> {
        tensor(self.dtype, &self.shape, self.fortran, self.bytes())
    }
}

/// The kind of the elements of a file, by the type that its header names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[doc(hidden)]
pub enum Elements {
    /// Numbers of a type that can be factored. bfloat16 is one only if the file names it.
    Floats(DType),
    /// Floating-point numbers of another type: of 8 bits or fewer, or extended precision.
    OtherFloats,
    /// Elements of this many bytes without a type. `ml_dtypes` saves so bfloat16 (2 bytes) and types of 8 bits and
    /// fewer (1 byte).
    Untyped(usize),
    /// Integers of this many bytes.
    Integers(usize),
    /// Elements of any other kind: bool, complex numbers, text, dates, structures, Python objects.
    Other,
}

/// The content of the header of a file, whatever its elements are and however many axes it has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(hidden)]
pub struct Description {
    path: PathBuf,
    elements: Elements,
    type_name: String,
    /// The bytes of an element, if they are fixed.
    size: Option<usize>,
    /// Whether the elements are in the other byte order.
    swap: bool,
    shape: Vec<usize>,
    fortran: bool,
}

impl Description {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// [`Error::File`]: no such file, a directory or a pipe, not a `.npy` file, a damaged header, fewer or more bytes
    /// than the shape needs.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Opened { mut file, len, .. } = open_file(path)?;
        let described = describe(&mut file, len).and_then(|(what, start)| {
            if let Some(size) = what.size {
                what.check_length(size, &what.type_name, len - start as u64)?;
            }
            Ok(Description { path: path.to_path_buf(), ..what })
        });
        described.map_err(|why| Error::file(path, why))
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the type as which [`Array::read`] or, with `bits_of`, [`Array::read_as`] reads the elements.
    ///
    /// # Errors
    /// [`Error::File`] for elements that it does not read.
    pub fn dtype(&self, bits_of: Option<DType>) -> Result<DType> {
        self.readable(bits_of).map_err(|why| Error::file(&self.path, why))
    }

    /// The kind of the elements.
    pub fn elements(&self) -> Elements {
        self.elements
    }

    /// The type of the elements as the file names it, such as `<i2`.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// The length of each axis; none for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether the first axis, not the last, is the one of stride 1.
    pub fn is_fortran(&self) -> bool {
        self.fortran
    }

    /// Returns the type as which the elements are read, or why they are not. `bits_of` is as in [`Array::read_as`].
    fn readable(&self, bits_of: Option<DType>) -> Checked<DType> {
        let name = &self.type_name;
        let what = match name.as_str() {
            "|O" => "pickled Python objects".to_string(),
            STRUCTURED => "structured elements".to_string(),
            _ if name.ends_with("f1") => format!("float8 ('{name}')"),
            _ => format!("elements of type '{name}'"),
        };
        match (self.elements, bits_of) {
            (Elements::Floats(dtype), None) => Ok(dtype),
            (Elements::Floats(dtype), Some(want)) if dtype == want => Ok(dtype),
            (Elements::Untyped(size) | Elements::Integers(size), Some(want)) if size == want.size() => Ok(want),
            (_, Some(want)) => Err(format!("holds {what}, not {want}; convert it first")),
            (Elements::Untyped(2), None) => Err(format!(
                "holds two-byte elements without a type ('{name}'); if they are bfloat16, say so when it is opened"
            )),
            (Elements::Untyped(1), None) => Err(format!(
                "holds one-byte elements without a type ('{name}'), as float8 is saved; save the array as a wider \
                 type, e.g. a.astype('f4')"
            )),
            (Elements::OtherFloats, None) if self.size == Some(1) => {
                Err(format!("holds {what}, which is not read; save the array as a wider type, e.g. a.astype('f4')"))
            }
            (_, None) if name.trim_start_matches(['<', '>', '=']).starts_with('c') => Err(format!(
                "holds complex elements ('{name}'), and factors are real; save the real and the imaginary part by \
                 themselves, e.g. a.real.astype('f4')"
            )),
            (elements, None) => {
                let bits = if elements == Elements::Integers(2) {
                    "; if they are bits of bfloat16, say so when it is opened"
                } else {
                    ""
                };
                Err(format!("holds {what}; convert it to f16, f32 or f64 first, e.g. a.astype('f4'){bits}"))
            }
        }
    }

    /// Returns the bytes of all elements, of `size` bytes each, or an error unless these are the `have` bytes that
    /// follow the header. `of` is the type for the error.
    fn check_length(&self, size: usize, of: &str, have: u64) -> Checked<u64> {
        let want = (self.shape.iter())
            .try_fold(size as u64, |p, &d| p.checked_mul(d as u64))
            .filter(|&bytes| bytes <= isize::MAX as u64);
        if let Some(want) = want.filter(|&want| want == have) {
            return Ok(want);
        }
        let needs = want.map_or("more bytes than there are addresses".to_string(), |want| format!("{want} bytes"));
        let advice = if want.is_some_and(|want| want < have) {
            "save one array to one file"
        } else {
            "the file was cut short: copy or save it again"
        };
        let shape = Tuple(&self.shape);
        Err(format!("needs {needs} for shape {shape} of {of} and has {have} after its header; {advice}"))
    }
}

/// The name for the type of structured elements, for which a file has a list of names.
const STRUCTURED: &str = "structured";

/// A file that is mapped into memory: the system reads what is touched, and drops it again when memory is short.
///
/// What another process writes into the file shows, and a process that cuts it short while it is mapped ends this one
/// (SIGBUS). Where that can happen, take [`Stream`]: its reads return errors, and cost no more.
#[derive(Debug)]
pub struct Mapped {
    map: memmap2::Mmap,
    header: Header,
}

impl Mapped {
    /// Maps a `.npy` file whose elements are in this machine's byte order. The type of the elements is as in
    /// [`Array::read`] or, with `bits_of`, in [`Array::read_as`].
    ///
    /// # Errors
    /// [`Error::File`] for the reasons of [`Array::read`] or [`Array::read_as`], and for a foreign byte order, elements
    /// that are not aligned in the file (NumPy aligns them), or a file that cannot be mapped.
    pub fn open(path: impl AsRef<Path>, bits_of: Option<DType>) -> Result<Self> {
        let path = path.as_ref();
        let (file, header) = open(path, bits_of)?;
        if header.swap {
            return Err(Error::file(path, "is in the other byte order; read it (npy::Array) instead of mapping it"));
        }
        let map = map(&file).map_err(|e| Error::file(path, format_args!("cannot be mapped: {e}; read it instead")))?;
        let is_member = member_of(path).is_some();
        if !is_member && map.len() as u64 != (header.start + header.bytes) as u64 {
            return Err(Error::file(path, truncated(map.len() as u64, (header.start + header.bytes) as u64)));
        }
        if !header.start.is_multiple_of(header.dtype.size()) {
            return Err(Error::file(path, format_args!("has elements that are not aligned; {SAVE_AGAIN}")));
        }
        Ok(Mapped { map, header })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.header.dtype
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// Returns the array as a tensor over the file; Fortran order shows as strides.
    ///
    /// # Errors
    /// A file that [`open`](Self::open) mapped gives none.
    pub fn tensor(&self) -> Result<TensorRef<'_>> {
        tensor(
            self.header.dtype,
            &self.header.shape,
            self.header.fortran,
            &self.map[self.header.start..self.header.start + self.header.bytes],
        )
    }
}

/// Writes elements, row-major and in native byte order, as a `.npy` file of version 1, and replaces a file that exists.
///
/// bfloat16 is written as `'<V2'`, which `numpy.load(path).view(ml_dtypes.bfloat16)` and [`Array::read_as`] read.
///
/// # Errors
/// [`Error::Shape`] if `bytes` is not what `shape` needs; [`Error::File`] if the file cannot be written.
pub fn write(path: impl AsRef<Path>, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    check_length(dtype, shape, bytes)?;
    let put = || write_to(&mut File::create(path)?, dtype, shape, bytes);
    put().map_err(|e: std::io::Error| {
        Error::file(path, format_args!("cannot be written: {e}; check the path and the space"))
    })
}

/// Writes the bytes of the file that [`write()`] makes into any writer.
///
/// # Errors
/// The errors of the writer, and [`InvalidInput`](std::io::ErrorKind::InvalidInput) if `bytes` is not what `shape`
/// needs.
#[doc(hidden)]
pub fn write_to(w: &mut impl Write, dtype: DType, shape: &[usize], bytes: &[u8]) -> std::io::Result<()> {
    check_length(dtype, shape, bytes).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidInput, e))?;
    w.write_all(&header(dtype, shape)?)?;
    w.write_all(bytes)
}

/// Refuses `bytes` that are not as many as elements of this type and shape have.
fn check_length(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let want = shape.iter().try_fold(dtype.size(), |p, &d| p.checked_mul(d));
    if want != Some(bytes.len()) {
        let want = format_args!("the bytes of shape {shape:?} of {dtype}").to_string();
        return Err(Error::shape("npy::write", want, format_args!("{} bytes", bytes.len())));
    }
    Ok(())
}

/// Writes the bytes of the `.npy` file of row-major `elements`, rounded to `dtype` (to nearest, ties to even), into any
/// writer. They are rounded in blocks of some 100 KiB, without a copy of all of them.
///
/// # Errors
/// The errors of the writer, and [`InvalidInput`](std::io::ErrorKind::InvalidInput) if the number of elements is not
/// that of `shape`.
#[doc(hidden)]
pub fn write_elements_to<T: Element>(
    w: &mut impl Write,
    dtype: DType,
    shape: &[usize],
    elements: &[T],
) -> std::io::Result<()> {
    if dtype == T::DTYPE {
        return write_to(w, dtype, shape, bytemuck::cast_slice(elements));
    }
    check_length(T::DTYPE, shape, bytemuck::cast_slice(elements))
        .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidInput, e))?;
    w.write_all(&header(dtype, shape)?)?;
    write_rounded_to(w, dtype, elements)
}

/// Writes elements, rounded to `dtype` (to nearest, ties to even), without a header.
///
/// # Errors
/// The errors of the writer.
#[doc(hidden)]
pub fn write_rounded_to<T: Element>(w: &mut impl Write, dtype: DType, elements: &[T]) -> std::io::Result<()> {
    if dtype == T::DTYPE {
        return w.write_all(bytemuck::cast_slice(elements));
    }
    elements.chunks(WRITTEN_AT_ONCE).try_for_each(|part| {
        let rounded = Matrix::from_vec(part.to_vec(), 1, part.len()).map_err(std::io::Error::other)?;
        w.write_all(&rounded.to_bytes(dtype))
    })
}

/// The number of elements that are rounded at a time.
const WRITTEN_AT_ONCE: usize = 1 << 12;

/// Writes a matrix, rounded to `dtype` (to nearest, ties to even), as a `.npy` file, as [`write()`] does.
///
/// # Errors
/// [`Error::File`] if the file cannot be written.
pub fn write_matrix<T: Element>(path: impl AsRef<Path>, a: &Matrix<T>, dtype: DType) -> Result<()> {
    let path = path.as_ref();
    let put = || write_elements_to(&mut File::create(path)?, dtype, &[a.nrows(), a.ncols()], a.as_slice());
    put().map_err(|e: std::io::Error| {
        Error::file(path, format_args!("cannot be written: {e}; check the path and the space"))
    })
}

/// Writes indices as a `.npy` file of 64-bit integers with one axis, and replaces a file that exists.
///
/// # Errors
/// [`Error::File`] if the file cannot be written.
#[doc(hidden)]
pub fn write_indices(path: impl AsRef<Path>, indices: &[usize]) -> Result<()> {
    let path = path.as_ref();
    let put = || write_indices_to(&mut File::create(path)?, indices);
    put().map_err(|e: std::io::Error| {
        Error::file(path, format_args!("cannot be written: {e}; check the path and the space"))
    })
}

/// Writes the bytes of the file that [`write_indices`] makes into any writer.
///
/// # Errors
/// The errors of the writer.
#[doc(hidden)]
pub fn write_indices_to(w: &mut impl Write, indices: &[usize]) -> std::io::Result<()> {
    let elements: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
    w.write_all(&header_of('i', 8, &[indices.len()])?)?;
    w.write_all(bytemuck::cast_slice(&elements))
}

/// Returns the bytes of a file before `count` elements that are bytes.
pub(crate) fn byte_header(count: usize) -> Vec<u8> {
    header_of('u', 1, &[count]).expect("one axis")
}

/// Returns the text in a `.npy` file of one axis of bytes, if that is what it is.
pub(crate) fn text_of(mut file: &[u8]) -> Option<String> {
    let len = file.len() as u64;
    let (what, _) = describe(&mut file, len).ok()?;
    let is_bytes = what.shape.len() == 1 && what.size == Some(1) && file.len() == what.shape[0];
    is_bytes.then(|| String::from_utf8(file.to_vec()).ok()).flatten()
}

/// Returns the bytes of a file before its elements, to the byte as NumPy 2 writes them (`npyz` writes `(2, 3, )`): with
/// room for a first axis of 21 digits, and blanks up to a multiple of 64.
///
/// # Errors
/// [`InvalidInput`](std::io::ErrorKind::InvalidInput) for a shape of more axes than a header has room for.
#[doc(hidden)]
pub fn header(dtype: DType, shape: &[usize]) -> std::io::Result<Vec<u8>> {
    let kind = match dtype {
        DType::BF16 => 'V',
        DType::F16 | DType::F32 | DType::F64 => 'f',
    };
    header_of(kind, dtype.size(), shape)
}

/// Returns the bytes of a file before its elements, for elements of any kind: `kind` is NumPy's letter, and `size` the
/// bytes of one element.
fn header_of(kind: char, size: usize, shape: &[usize]) -> std::io::Result<Vec<u8>> {
    let order = match () {
        () if size == 1 => '|',
        () if cfg!(target_endian = "little") => '<',
        () => '>',
    };
    let tuple = Tuple(shape);
    let mut text = format!("{{'descr': '{order}{kind}{size}', 'fortran_order': False, 'shape': {tuple}, }}");
    let room = shape.first().map_or(0, |first| 21 - first.to_string().len());
    let end = (preamble(1) + text.len() + room + 1).next_multiple_of(64) - preamble(1);
    let text_len = u16::try_from(end).map_err(|_| std::io::Error::other("too many axes"))?;
    text.extend(std::iter::repeat_n(' ', end - 1 - text.len()));
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(text_len.to_le_bytes());
    bytes.extend(text.bytes());
    bytes.push(b'\n');
    Ok(bytes)
}

/// A result whose error is a sentence that goes after a path.
type Checked<T> = std::result::Result<T, String>;

/// Reads a file whole.
fn read(path: &Path, bits_of: Option<DType>) -> Result<Array> {
    let (mut file, header) = open_checked(path, bits_of)?;
    let seen = FileState::new(&file);
    let array = load(&mut file, header);
    array.and_then(|array| seen.check(&file).map(|()| array)).map_err(|why| Error::file(path, why))
}

/// The length and the time of change of an open file. They show that a file was written to while it was read.
#[derive(Debug, Clone, Copy)]
struct FileState(Option<(u64, SystemTime)>);

impl FileState {
    /// Looks up the present state of a file.
    fn new(file: &File) -> Self {
        FileState(file.metadata().ok().and_then(|meta| Some((meta.len(), meta.modified().ok()?))))
    }

    /// Refuses a file that has changed since.
    fn check(self, file: &File) -> Checked<()> {
        if FileState::new(file).0 == self.0 {
            return Ok(());
        }
        Err("was changed while it was read; read it when it is complete".into())
    }
}

/// Returns the archive of which a path names a member, and the name of the member: `weights.npz/layer.0` is the member
/// `layer.0` of the file `weights.npz`. The name is all that follows the first `/` behind the archive, to the letter,
/// and never a path.
#[doc(hidden)]
pub fn member_of(path: &Path) -> Option<(&Path, &str)> {
    let text = path.to_str()?;
    let ends = text.match_indices(".npz/").map(|(at, _)| at + ".npz".len());
    let end = ends.into_iter().find(|&end| Path::new(&text[..end]).is_file())?;
    Some((Path::new(&text[..end]), &text[end + 1..]))
}

/// Returns the path of a member of an archive.
#[doc(hidden)]
pub fn member_path(archive: &Path, name: &str) -> PathBuf {
    let mut path = archive.as_os_str().to_owned();
    path.push("/");
    path.push(name);
    path.into()
}

/// The directory of an archive.
#[derive(Debug)]
struct Members {
    all: Vec<zip::Member>,
    /// The places of the names in `all`.
    places: HashMap<String, usize>,
    /// The place of the directory in the file.
    directory: u64,
}

impl Members {
    /// Reads the directory of an open archive. The last one is kept for the next member of the same file.
    fn read(archive: &Path, file: &mut File) -> Checked<Arc<Self>> {
        static LAST: Mutex<Option<(PathBuf, FileState, Arc<Members>)>> = Mutex::new(None);
        let state = FileState::new(file);
        let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((path, seen, members)) = &*last()
            && (path.as_path(), seen.0) == (archive, state.0)
            && state.0.is_some()
        {
            return Ok(Arc::clone(members));
        }
        let (all, directory) = zip::members(file)?;
        let places = all.iter().enumerate().map(|(i, member)| (member.name.clone(), i)).collect();
        let members = Arc::new(Members { all, places, directory });
        *last() = Some((archive.to_path_buf(), state, Arc::clone(&members)));
        Ok(members)
    }

    /// Finds a member by its name, or by its name with `.npy`.
    fn find(&self, name: &str) -> Option<&zip::Member> {
        let at = |name: &str| self.places.get(name).map(|&i| &self.all[i]);
        at(name).or_else(|| at(name.strip_suffix(".npy")?))
    }
}

/// An open file, or a member of an archive, at its first byte.
struct Opened {
    file: File,
    /// The place of its first byte in the file.
    start: u64,
    /// The count of its bytes.
    len: u64,
    /// The member, if it is one.
    member: Option<zip::Member>,
}

impl Opened {
    /// Refuses a member that does not have its checksum, and goes back to its first byte.
    fn check_sum(&mut self) -> Checked<()> {
        let Some(member) = &self.member else { return Ok(()) };
        zip::check_sum(&mut self.file, member, self.start)?;
        self.rewind()
    }

    /// Reads the header, behind which the file is then.
    fn header(mut self, bits_of: Option<DType>) -> Checked<(File, Header)> {
        let mut header = parse_header(&mut self.file, self.len, bits_of)?;
        header.start += self.start as usize;
        Ok((self.file, header))
    }

    fn rewind(&mut self) -> Checked<()> {
        let sought = self.file.seek(std::io::SeekFrom::Start(self.start));
        sought.map(|_| ()).map_err(|e| format!("cannot be read: {e}; try again"))
    }
}

/// Opens a regular file, or a [member](member_of) of an archive.
fn open_file(path: &Path) -> Result<Opened> {
    let why = |why: String| Error::file(path, why);
    let io = |e: std::io::Error| why(format!("cannot be read: {e}; check the path"));
    if let Some((archive, name)) = member_of(path) {
        let mut file = File::open(archive).map_err(io)?;
        let members = Members::read(archive, &mut file).map_err(|why| Error::file(archive, why))?;
        let found = members.find(name);
        let member = found.ok_or_else(|| why(format!("is not in the archive: it has no member {name:?}")))?.clone();
        let start = zip::start_of(&mut file, &member, members.directory).map_err(why)?;
        let mut opened = Opened { file, start, len: member.bytes, member: Some(member) };
        opened.rewind().map_err(why)?;
        return Ok(opened);
    }
    // The kind of the file is looked up before it is opened, because opening a pipe would wait for its writer.
    let meta = fs::metadata(path).map_err(io)?;
    if !meta.is_file() {
        let what = if meta.is_dir() { "a directory" } else { "no regular file" };
        return Err(why(format!("is {what}; give a .npy file")));
    }
    Ok(Opened { file: File::open(path).map_err(io)?, start: 0, len: meta.len(), member: None })
}

/// Opens a regular file and reads its header.
fn open(path: &Path, bits_of: Option<DType>) -> Result<(File, Header)> {
    open_file(path)?.header(bits_of).map_err(|why| Error::file(path, why))
}

/// Opens a regular file to be read whole, with its checksum if it has one, and reads its header.
fn open_checked(path: &Path, bits_of: Option<DType>) -> Result<(File, Header)> {
    let mut opened = open_file(path)?;
    opened.check_sum().and_then(|()| opened.header(bits_of)).map_err(|why| Error::file(path, why))
}

/// The header of a file whose elements can be read, checked against the length of the file.
#[derive(Debug, Clone)]
struct Header {
    dtype: DType,
    /// Whether the elements are in the other byte order.
    swap: bool,
    shape: Vec<usize>,
    fortran: bool,
    /// The offset of the elements in the file.
    start: usize,
    /// The bytes of all elements.
    bytes: usize,
}

/// Reads the header of a file of `len` bytes, for elements that can be read.
fn parse_header(r: &mut impl Read, len: u64, bits_of: Option<DType>) -> Checked<Header> {
    let (what, start) = describe(r, len)?;
    let dtype = what.readable(bits_of)?;
    if what.shape.is_empty() || what.shape.contains(&0) {
        let shape = Tuple(&what.shape);
        return Err(format!("has shape {shape}, which holds no matrix; give an array with elements"));
    }
    // `check_length` has seen that the size fits an address.
    let bytes = what.check_length(dtype.size(), dtype.name(), len - start as u64)? as usize;
    let Description { swap, shape, fortran, .. } = what;
    Ok(Header { dtype, swap, shape, fortran, start, bytes })
}

/// Reads the header of a file of `len` bytes, whatever it holds, and returns it with the offset of the elements.
fn describe(r: &mut impl Read, len: u64) -> Checked<(Description, usize)> {
    let mut text = read_header(r, len)?;
    let start = preamble(text[6]);
    let foreign = sanitize(&mut text[start..])?;
    let header = NpyHeader::from_reader(&text[..]).map_err(|e| {
        let e = e.to_string();
        // For a syntax error the parser prints the place, in several lines.
        let e = if e.contains('\n') { "it is no Python dict" } else { &e };
        format!("has a damaged header: {e}; {SAVE_AGAIN}")
    })?;
    let dims = header.shape();
    if dims.len() > MAX_AXES {
        return Err(format!("has {} axes, more than the {MAX_AXES} of NumPy; {SAVE_AGAIN}", dims.len()));
    }
    let shape = dims.iter().map(|&d| usize::try_from(d)).collect::<std::result::Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| format!("has shape {}, more than there are addresses; {SAVE_AGAIN}", Tuple(dims)))?;
    // An array of one axis is in both orders.
    let fortran = header.order() == Order::Fortran && shape.len() > 1;
    let (elements, type_name, size, swap) = match foreign {
        Some(foreign) => foreign.elements(),
        None => element_type(&header.dtype()),
    };
    let path = PathBuf::new();
    Ok((Description { path, elements, type_name, size, swap, shape, fortran }, text.len()))
}

/// Reads the elements that follow the header.
fn load(r: &mut impl Read, header: Header) -> Checked<Array> {
    let Header { dtype, swap, shape, fortran, bytes: want, .. } = header;
    let (mut buffer, offset) = aligned(want)?;
    let got = r.take(want as u64).read_to_end(&mut buffer).map_err(|e| format!("cannot be read: {e}; try again"))?;
    if got != want {
        return Err(truncated(got as u64, want as u64));
    }
    if swap {
        swap_bytes(&mut buffer[offset..], dtype);
    }
    Ok(Array { dtype, shape, fortran, buffer, offset })
}

/// Reads the elements of an array in Fortran order, each to its place in C order.
fn load_reordered(r: &mut impl Read, header: Header) -> Checked<Array> {
    let Header { dtype, swap, shape, bytes: want, .. } = header;
    let size = dtype.size();
    let (mut buffer, offset) = aligned(want)?;
    buffer.resize(offset + want, 0);
    let elements = &mut buffer[offset..];
    let mut strides = vec![size; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let (mut index, mut at) = (vec![0; shape.len()], 0);
    let (mut block, mut done) = (Vec::with_capacity(BLOCK.min(want)), 0);
    while done < want {
        block.clear();
        let part = BLOCK.min(want - done);
        let read = r.by_ref().take(part as u64).read_to_end(&mut block);
        done += read.map_err(|e| format!("cannot be read: {e}; try again"))?;
        if block.len() != part {
            return Err(truncated(done as u64, want as u64));
        }
        for element in block.chunks_exact(size) {
            elements[at..at + size].copy_from_slice(element);
            // The next index, the first axis first.
            for axis in 0..shape.len() {
                index[axis] += 1;
                at += strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                at -= shape[axis] * strides[axis];
                index[axis] = 0;
            }
        }
    }
    if swap {
        swap_bytes(elements, dtype);
    }
    Ok(Array { dtype, shape, fortran: false, buffer, offset })
}

/// Returns a buffer whose end is aligned, with room for `bytes` more bytes, and the offset of its end.
fn aligned(bytes: usize) -> Checked<(Vec<u8>, usize)> {
    let mut buffer: Vec<u8> = Vec::new();
    // There is one allocation, and it is never grown, because reads stop at `bytes`. So the alignment stays.
    let room = bytes.checked_add(ALIGN).filter(|&room| buffer.try_reserve_exact(room).is_ok());
    room.ok_or_else(|| format!("needs {bytes} bytes of memory, which there are not; use a machine with more"))?;
    let offset = buffer.as_ptr().align_offset(ALIGN);
    buffer.resize(offset, 0);
    Ok((buffer, offset))
}

/// Says that a file is shorter than it was when it was opened.
#[cold]
fn truncated(got: u64, want: u64) -> String {
    format!("lost its end while it was read ({got} of {want} bytes); read it when it is complete")
}

/// Reverses the bytes of every element.
fn swap_bytes(bytes: &mut [u8], dtype: DType) {
    for element in bytes.chunks_exact_mut(dtype.size()) {
        element.reverse();
    }
}

/// Makes a tensor over the elements of a file.
fn tensor<'a>(dtype: DType, shape: &[usize], fortran: bool, bytes: &'a [u8]) -> Result<TensorRef<'a>> {
    let tensor = TensorRef::from_bytes(dtype, shape, bytes)?;
    if !fortran {
        return Ok(tensor);
    }
    let mut step = 1isize;
    let strides: Vec<isize> = (shape.iter())
        .map(|&dim| {
            let stride = step;
            step *= dim as isize;
            stride
        })
        .collect();
    tensor.with_strides(&strides)
}

const SAVE_AGAIN: &str = "save the array again with numpy.save";

/// Returns the number of bytes before the text of the header in a file of version `major`.
fn preamble(major: u8) -> usize {
    if major == 1 { 10 } else { 12 }
}

/// Reads a file up to its elements: magic, version, length and text of the header.
fn read_header(r: &mut impl Read, len: u64) -> Checked<Vec<u8>> {
    if len == 0 {
        return Err(format!("is empty; {SAVE_AGAIN}"));
    }
    let mut head = Vec::with_capacity(1024);
    let mut upto = |head: &mut Vec<u8>, end: usize| -> Checked<()> {
        let more = (end - head.len()) as u64;
        r.by_ref().take(more).read_to_end(head).map_err(|e| format!("cannot be read: {e}; try again"))?;
        if head.len() == end { Ok(()) } else { Err(format!("ends inside its header; {SAVE_AGAIN}")) }
    };
    upto(&mut head, len.min(8) as usize)?;
    if !head.starts_with(b"\x93NUMPY") {
        let what = if head.starts_with(b"PK") { " but an archive (.npz, PyTorch)" } else { "" };
        return Err(format!("is no .npy file{what}; save one array with numpy.save"));
    }
    upto(&mut head, 8)?;
    let (major, minor) = (head[6], head[7]);
    if !(1..=3).contains(&major) || minor != 0 {
        return Err(format!("has version {major}.{minor} of the .npy format, not 1.0, 2.0 or 3.0; {SAVE_AGAIN}"));
    }
    let start = preamble(major);
    upto(&mut head, start)?;
    let size = head[8..].iter().rev().fold(0usize, |size, &byte| size << 8 | usize::from(byte));
    if size > MAX_HEADER || (start + size) as u64 > len {
        return Err(format!(
            "says its header has {size} bytes, the file has {len}; a header is at most {MAX_HEADER}; {SAVE_AGAIN}"
        ));
    }
    upto(&mut head, start + size)?;
    Ok(head)
}

/// Refuses header texts on which the parser would take exponential time or overflow the product of the shape. A text
/// that passes is not yet a valid header.
///
/// Backslashes and adjacent quotes are refused, so that a string ends here where it ends for the parser. Two things
/// that NumPy reads and the parser does not are blanked out, byte for byte: the `L` that Python 2 puts after numbers,
/// and a type that is not NumPy's, which is returned.
fn sanitize(text: &mut [u8]) -> Checked<Option<Foreign>> {
    let damaged = |what: String| Err(format!("has a damaged header: {what}; {SAVE_AGAIN}"));
    let (mut depth, mut elements, mut at) = (0usize, 1u64, 0);
    let (mut foreign, mut is_descr, mut is_value) = (None, false, false);
    while let Some(&c) = text.get(at) {
        at += 1;
        match c {
            b'\'' | b'"' => {
                let Some(n) = text[at..].iter().position(|&b| b == c || b == b'\\').filter(|&n| text[at + n] == c)
                else {
                    return damaged("a string in it does not end".into());
                };
                let string = &mut text[at..at + n];
                if depth == 1 && is_descr && is_value {
                    foreign = Foreign::parse(string);
                    if foreign.is_some() {
                        // Any type that the parser knows stands in for it; `n` is at least that long.
                        string.fill(b' ');
                        string[..3].copy_from_slice(b"|V1");
                        text[at + 3] = c;
                        text[at + n] = if n == 3 { c } else { b' ' };
                    }
                } else {
                    is_descr = depth == 1 && string == b"descr";
                }
                is_value = false;
                at += n + 1;
                if matches!(text.get(at), Some(b'\'' | b'"')) {
                    return damaged("quotes that follow each other".into());
                }
            }
            b'(' | b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return damaged(format!("brackets deeper than {MAX_DEPTH}"));
                }
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'0'..=b'9' => {
                let digits = 1 + text[at..].iter().take_while(|b| b.is_ascii_digit()).count();
                let number = text[at - 1..][..digits]
                    .iter()
                    .try_fold(0u64, |n, &d| n.checked_mul(10)?.checked_add((d - b'0').into()));
                at += digits - 1;
                if text.get(at) == Some(&b'L') {
                    text[at] = b' ';
                }
                let product = number.and_then(|n| elements.checked_mul(n.max(1))).filter(|&n| n <= i64::MAX as u64);
                let Some(product) = product else {
                    return damaged("a shape of more than 2^63 elements".into());
                };
                elements = product;
            }
            b':' | b',' => is_value = c == b':',
            b' ' | b'\t' | b'\n' => {}
            _ if b"TrueFalse".contains(&c) => {}
            _ => return damaged(format!("{:?} where a description of an array has none", char::from(c))),
        }
    }
    Ok(foreign)
}

/// A type that a header names and for which NumPy has no name.
struct Foreign {
    name: String,
    /// Whether it is bfloat16; if not, it is a float of 8 bits or fewer.
    is_bf16: bool,
    /// The letter of the byte order, if there is one.
    order: Option<u8>,
}

impl Foreign {
    /// Recognizes `bfloat16`, which some programs write in place of the `<V2` of `ml_dtypes`, `<f1`, which `ml_dtypes`
    /// writes for one kind of float8, and the names of float8 and smaller types.
    fn parse(text: &[u8]) -> Option<Self> {
        let (order, name) = match text {
            [order @ (b'<' | b'>' | b'|' | b'='), name @ ..] => (Some(*order), name),
            name => (None, name),
        };
        let is_bf16 = name == b"bfloat16";
        let is_small = name == b"f1" && order.is_some()
            || [&b"float8_"[..], b"float6_", b"float4_"].iter().any(|of| name.starts_with(of));
        (is_bf16 || is_small).then(|| Foreign { name: String::from_utf8_lossy(text).into_owned(), is_bf16, order })
    }

    /// Returns what [`element_type`] returns for NumPy's own types.
    fn elements(self) -> (Elements, String, Option<usize>, bool) {
        let other = if cfg!(target_endian = "little") { b'>' } else { b'<' };
        match self.is_bf16 {
            true => (Elements::Floats(DType::BF16), self.name, Some(2), self.order == Some(other)),
            false => (Elements::OtherFloats, self.name, Some(1), false),
        }
    }
}

/// Returns the kind of the elements, the name of their type, their size if it is fixed, and whether their bytes are to
/// be swapped.
fn element_type(descr: &npyz::DType) -> (Elements, String, Option<usize>, bool) {
    let pickled = descr.uses_pickled_array();
    let size = descr.num_bytes().filter(|_| !pickled);
    let npyz::DType::Plain(t) = descr else {
        return (Elements::Other, STRUCTURED.to_string(), size, false);
    };
    let swap = t.endianness() != Endianness::of_machine() && t.endianness() != Endianness::Irrelevant;
    let elements = match (t.type_char(), size) {
        (TypeChar::Float, Some(2)) => Elements::Floats(DType::F16),
        (TypeChar::Float, Some(4)) => Elements::Floats(DType::F32),
        (TypeChar::Float, Some(8)) => Elements::Floats(DType::F64),
        (TypeChar::Float, _) => Elements::OtherFloats,
        (TypeChar::RawData, Some(size)) => Elements::Untyped(size),
        (TypeChar::Int | TypeChar::Uint, Some(size)) => Elements::Integers(size),
        _ => Elements::Other,
    };
    (elements, t.to_string(), size, swap)
}

/// A shape that is displayed as Python writes it.
struct Tuple<'a, D>(&'a [D]);

impl<D: ToString> std::fmt::Display for Tuple<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self.0.iter().map(D::to_string).collect();
        write!(f, "({}{})", dims.join(", "), if dims.len() == 1 { "," } else { "" })
    }
}
