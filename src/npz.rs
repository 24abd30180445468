//! NumPy's `.npz` archives (feature `npy`): several arrays in one file, read one at a time, and written.
//!
//! ```text
//!   local header  name.npy  array      ...one after the other, stored as they are
//!   directory     of each: name, CRC-32, length, place of its header
//!   end           number of members, place of the directory
//! ```
//!
//! `numpy.savez` stores members without compression, and so does [`Writer`]; `numpy.savez_compressed` deflates them,
//! which is refused with a note of what to do. Archives above 4 GiB have their sizes in extra fields (ZIP64), which are
//! read and written.
//!
//! **Hostile input.** The directory says where everything is, and none of it is believed: a member has to lie within the
//! file, before the directory, with a local header of the same name; its bytes have the checksum that the directory
//! gives. Nothing is unpacked, so that nothing grows, and no name is used as a path. Memory is that of the directory
//! (refused above 64 MiB) and of the one array that is read. Format: PKWARE's APPNOTE 6.3.

#[cfg(feature = "linalg")]
mod factors;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::npy::zip::{self, CENTRAL, ELSEWHERE, END, END_64, EXTRA_64, LOCAL, LOCATOR_64, Member};
use crate::npy::{self, Array};
use crate::tensor::{DType, Element, Matrix};

/// An archive that is open for reading.
///
/// ```
/// use tensorslim::{DType, Matrix, npz};
///
/// let path = std::env::temp_dir().join("tensorslim-doc.npz");
/// let a = Matrix::<f32>::from_fn(3, 2, |i, j| (i + 10 * j) as f32);
/// let mut writer = npz::Writer::create(&path)?;
/// writer.matrix("a", &a, DType::F32)?;
/// writer.finish()?;
/// let mut archive = npz::Archive::open(&path)?;
/// assert_eq!(archive.names().collect::<Vec<_>>(), ["a"]);
/// assert_eq!(archive.read("a", None)?.shape(), [3, 2]);
/// # Ok::<(), tensorslim::Error>(())
/// ```
#[derive(Debug)]
pub struct Archive<R = File> {
    path: PathBuf,
    file: R,
    members: Vec<Member>,
    /// The place of the directory, behind all members.
    directory: u64,
}

impl Archive {
    /// Opens an archive and reads its directory.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read or is no archive, for a directory that is damaged or claims what
    /// the file does not have, and for one of more than 64 MiB.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let unreadable = |e| Error::file(path, format_args!("cannot be read: {e}; check the path"));
        let mut file = File::open(path).map_err(unreadable)?;
        let (members, directory) = zip::members(&mut file).map_err(|why| Error::file(path, why))?;
        Ok(Archive { path: path.to_path_buf(), file, members, directory })
    }
}

impl<R: Read + Seek> Archive<R> {
    /// Reads the directory of an archive in anything that can be read, such as bytes in a
    /// [`Cursor`](std::io::Cursor). Errors have `.npz bytes` in place of a path.
    ///
    /// # Errors
    /// Those of [`open`](Archive::open).
    pub fn new(mut file: R) -> Result<Self> {
        let path = PathBuf::from(".npz bytes");
        let (members, directory) = zip::members(&mut file).map_err(|why| Error::file(&path, why))?;
        Ok(Archive { path, file, members, directory })
    }

    /// Returns the names of the arrays, as `numpy.load` has them, without `.npy`.
    pub fn names(&self) -> impl Iterator<Item = &str> + '_ {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// Returns the names of the members that are arrays by their names in the archive, `NAME.npy`.
    #[doc(hidden)]
    pub fn arrays(&self) -> impl Iterator<Item = &str> + '_ {
        self.members.iter().filter(|member| member.is_array).map(|member| member.name.as_str())
    }

    /// Reads an array. The type of its elements is as in [`Array::read`] or, with `bits_of`, in [`Array::read_as`].
    ///
    /// # Errors
    /// [`Error::File`] for a name that is not there, a member that is compressed or damaged, and for the reasons of
    /// [`Array::read`].
    pub fn read(&mut self, name: &str, bits_of: Option<DType>) -> Result<Array> {
        let bytes = self.bytes_of(name)?;
        Array::from_bytes(&bytes, bits_of).map_err(|e| match e {
            Error::File { why, .. } => self.damaged(name, &why),
            e => e,
        })
    }

    /// Reads a text, as [`Writer::text`] writes it.
    ///
    /// # Errors
    /// [`Error::File`] for the reasons of [`read`](Self::read), and for a member that is no text.
    pub fn read_text(&mut self, name: &str) -> Result<String> {
        let bytes = self.bytes_of(name)?;
        npy::text_of(&bytes).ok_or_else(|| self.damaged(name, "is no text; give an array of UTF-8 bytes ('|u1')"))
    }

    /// Reads the bytes of a member, and checks their sum.
    fn bytes_of(&mut self, name: &str) -> Result<Vec<u8>> {
        let Some(member) = self.members.iter().find(|member| member.name == name) else {
            return Err(self.damaged(name, "is not in the archive"));
        };
        let bytes = zip::start_of(&mut self.file, member, self.directory).and_then(|start| {
            let bytes = zip::bytes_at(&mut self.file, start, member.bytes)?;
            member.check(crc32fast::hash(&bytes)).map(|()| bytes)
        });
        bytes.map_err(|why| self.damaged(name, &why))
    }

    fn damaged(&self, name: &str, why: &str) -> Error {
        Error::file(&self.path, format_args!("member {name:?} {why}"))
    }
}

/// Writes an archive, one array after the other, into a file or anything else that takes bytes.
#[derive(Debug)]
pub struct Writer<W = BufWriter<File>> {
    path: PathBuf,
    file: W,
    at: u64,
    members: Vec<Member>,
    names: BTreeSet<String>,
}

impl Writer {
    /// Creates the file, in place of one that is there.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|e| unwritable(path, &e))?;
        Ok(Writer { path: path.to_path_buf(), ..Writer::new(BufWriter::new(file)) })
    }
}

impl<W: Write> Writer<W> {
    /// Makes an archive of what is written to `w`, from its first byte on. Its errors have `.npz bytes` in place of a
    /// path.
    pub fn new(w: W) -> Self {
        Writer { path: ".npz bytes".into(), file: w, at: 0, members: Vec::new(), names: BTreeSet::new() }
    }

    /// Adds a matrix, rounded to `dtype` (to nearest, ties to even).
    ///
    /// # Errors
    /// [`Error::File`] for a name that is there already, and if the file cannot be written.
    pub fn matrix<T: Element>(&mut self, name: &str, a: &Matrix<T>, dtype: DType) -> Result<()> {
        self.array(name, &[a.nrows(), a.ncols()], a.as_slice(), dtype)
    }

    /// Adds an array of row-major elements, rounded to `dtype` (to nearest, ties to even).
    ///
    /// # Errors
    /// [`Error::File`] for a name that is there already or is longer than 65,531 bytes, for elements that are not those
    /// of `shape`, and if the file cannot be written.
    pub fn array<T: Element>(&mut self, name: &str, shape: &[usize], elements: &[T], dtype: DType) -> Result<()> {
        let mut bytes = Vec::new();
        npy::write_elements_to(&mut bytes, dtype, shape, elements).map_err(|e| unwritable(&self.path, &e))?;
        self.member(name, &bytes)
    }

    /// Adds an array of indices (`<i8`), as the pivots of [`Pivoted`](crate::Pivoted) are.
    ///
    /// # Errors
    /// Those of [`array`](Self::array).
    pub fn indices(&mut self, name: &str, indices: &[usize]) -> Result<()> {
        let mut bytes = Vec::new();
        npy::write_indices_to(&mut bytes, indices).map_err(|e| unwritable(&self.path, &e))?;
        self.member(name, &bytes)
    }

    /// Adds a text, as an array of its UTF-8 bytes (`|u1`): `bytes(archive["name"]).decode()` in Python.
    ///
    /// # Errors
    /// Those of [`array`](Self::array).
    pub fn text(&mut self, name: &str, text: &str) -> Result<()> {
        let mut bytes = npy::byte_header(text.len());
        bytes.extend(text.as_bytes());
        self.member(name, &bytes)
    }

    /// Adds the bytes of a `.npy` file.
    fn member(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.names.contains(name) || name.len() > usize::from(u16::MAX) - 4 {
            return Err(Error::file(&self.path, format_args!("cannot hold a member {name:?}; give another name")));
        }
        let (crc, len) = (crc32fast::hash(bytes), bytes.len() as u64);
        let member = Member { name: name.to_owned(), is_array: true, stored: true, crc, bytes: len, header: self.at };
        let head = local_header(&member);
        let put = self.file.write_all(&head).and_then(|()| self.file.write_all(bytes));
        put.map_err(|e| unwritable(&self.path, &e))?;
        self.at += head.len() as u64 + len;
        self.names.insert(member.name.clone());
        self.members.push(member);
        Ok(())
    }

    /// Writes the directory, without which the file is no archive, and returns what was written to.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written.
    pub fn finish(mut self) -> Result<W> {
        let directory: Vec<u8> = self.members.iter().flat_map(central_header).collect();
        let (count, size, start) = (self.members.len() as u64, directory.len() as u64, self.at);
        let mut end = Vec::new();
        if count >= u64::from(u16::MAX) || size.max(start) >= u64::from(ELSEWHERE) {
            end.extend(END_64.to_le_bytes());
            end.extend(44u64.to_le_bytes());
            end.extend([45, 0, 45, 0]);
            end.extend([0; 8]);
            [count, count, size, start].iter().for_each(|x| end.extend(x.to_le_bytes()));
            end.extend(LOCATOR_64.to_le_bytes());
            end.extend([0; 4]);
            end.extend((start + size).to_le_bytes());
            end.extend(1u32.to_le_bytes());
        }
        end.extend(END.to_le_bytes());
        end.extend([0; 4]);
        let short = u16::try_from(count).unwrap_or(u16::MAX);
        [short, short].iter().for_each(|x| end.extend(x.to_le_bytes()));
        [size, start].iter().for_each(|&x| end.extend(narrow(x).to_le_bytes()));
        end.extend([0; 2]);
        let put =
            self.file.write_all(&directory).and_then(|()| self.file.write_all(&end)).and_then(|()| self.file.flush());
        put.map_err(|e| unwritable(&self.path, &e))?;
        Ok(self.file)
    }
}

fn unwritable(path: &Path, e: &std::io::Error) -> Error {
    Error::file(path, format_args!("cannot be written: {e}; check the path and the space"))
}

/// Returns a number for a field of four bytes, or the mark that it is in an extra field.
fn narrow(x: u64) -> u32 {
    u32::try_from(x).unwrap_or(ELSEWHERE)
}

/// Returns the version, flags, method, time and checksum that both headers of a member have. The time is the first that
/// there is, so that equal arrays give equal files.
fn common(member: &Member) -> Vec<u8> {
    let mut bytes = vec![45, 0, 0, 8, 0, 0, 0, 0, 0x21, 0];
    bytes.extend(member.crc.to_le_bytes());
    bytes
}

fn local_header(member: &Member) -> Vec<u8> {
    let name = format!("{}.npy", member.name);
    let mut bytes = LOCAL.to_le_bytes().to_vec();
    bytes.extend(common(member));
    // Sizes are in the extra field, as numpy.savez has them.
    bytes.extend([0xff; 8]);
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend(20u16.to_le_bytes());
    bytes.extend(name.bytes());
    bytes.extend(EXTRA_64.to_le_bytes());
    bytes.extend(16u16.to_le_bytes());
    [member.bytes; 2].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
    bytes
}

fn central_header(member: &Member) -> Vec<u8> {
    let name = format!("{}.npy", member.name);
    let wide = member.bytes.max(member.header) >= u64::from(ELSEWHERE);
    let field = |x: u64| if wide { ELSEWHERE } else { narrow(x) };
    let mut bytes = CENTRAL.to_le_bytes().to_vec();
    bytes.extend([45, 3]);
    bytes.extend(common(member));
    [member.bytes; 2].iter().for_each(|&x| bytes.extend(field(x).to_le_bytes()));
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend((if wide { 28u16 } else { 0 }).to_le_bytes());
    bytes.extend([0; 6]);
    // A regular file that its owner may read and write.
    bytes.extend((0o100_600u32 << 16).to_le_bytes());
    bytes.extend(field(member.header).to_le_bytes());
    bytes.extend(name.bytes());
    if wide {
        bytes.extend(EXTRA_64.to_le_bytes());
        bytes.extend(24u16.to_le_bytes());
        [member.bytes, member.bytes, member.header].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
    }
    bytes
}
