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

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::npy::{self, Array};
use crate::tensor::{DType, Element, Matrix};

/// The largest directory that is read: some 10^6 members.
const MOST_DIRECTORY: u64 = 64 << 20;
/// The most bytes of a comment behind the end record.
const MOST_COMMENT: u64 = u16::MAX as u64;
const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// The value of a field whose number is in an extra field.
const ELSEWHERE: u32 = u32::MAX;
/// The number of the extra field of ZIP64.
const EXTRA_64: u16 = 1;

type Checked<T> = std::result::Result<T, String>;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq)]
struct Member {
    name: String,
    stored: bool,
    crc: u32,
    bytes: u64,
    header: u64,
}

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
pub struct Archive {
    path: PathBuf,
    file: File,
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
        let (members, directory) = members(&mut file).map_err(|why| Error::file(path, why))?;
        Ok(Archive { path: path.to_path_buf(), file, members, directory })
    }

    /// Returns the names of the arrays, as `numpy.load` has them, without `.npy`.
    pub fn names(&self) -> impl Iterator<Item = &str> + '_ {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// Reads an array. The type of its elements is as in [`Array::read`] or, with `bits_of`, in [`Array::read_as`].
    ///
    /// # Errors
    /// [`Error::File`] for a name that is not there, a member that is compressed or damaged, and for the reasons of
    /// [`Array::read`].
    pub fn read(&mut self, name: &str, bits_of: Option<DType>) -> Result<Array> {
        let named = |why: String| Error::file(&self.path, format_args!("member {name:?} {why}"));
        let Some(member) = self.members.iter().find(|member| member.name == name) else {
            return Err(named("is not in the archive".into()));
        };
        let bytes = extract(&mut self.file, member, self.directory).map_err(named)?;
        Array::from_bytes(&bytes, bits_of).map_err(|e| match e {
            Error::File { why, .. } => named(why),
            e => e,
        })
    }
}

/// Returns a little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(N)?)?;
    Some(part.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

fn damaged() -> String {
    "has a damaged directory; save the archive again".into()
}

/// Reads bytes `start..start + len` of the file.
fn bytes_at(file: &mut File, start: u64, len: u64) -> Checked<Vec<u8>> {
    let wrong = |e: std::io::Error| format!("cannot be read: {e}; try again");
    file.seek(SeekFrom::Start(start)).map_err(wrong)?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err("ends before what its directory says; save it again".into()) }
}

/// Reads the directory of an archive. Returns its members and its place.
fn members(file: &mut File) -> Checked<(Vec<Member>, u64)> {
    let length = file.seek(SeekFrom::End(0)).map_err(|e| format!("cannot be read: {e}; check the path"))?;
    let tail_start = length.saturating_sub(22 + MOST_COMMENT + 20);
    let tail = bytes_at(file, tail_start, length - tail_start)?;
    let ends = (0..tail.len().saturating_sub(21)).rev();
    let is_end = |&at: &usize| {
        number::<4>(&tail, at) == Some(u64::from(END))
            && number::<2>(&tail, at + 20) == Some((tail.len() - at - 22) as u64)
    };
    let at = ends.into_iter().find(is_end).ok_or("is no .npz archive, or was cut off; save it again")?;
    let field = |at: usize| number::<4>(&tail, at).ok_or_else(damaged);
    let (mut count, mut size, mut start) =
        (number::<2>(&tail, at + 10).ok_or_else(damaged)?, field(at + 12)?, field(at + 16)?);
    let locator = at.checked_sub(20).filter(|&at| number::<4>(&tail, at) == Some(u64::from(LOCATOR_64)));
    if let Some(locator) = locator {
        let end = bytes_at(file, number::<8>(&tail, locator + 8).ok_or_else(damaged)?, 56)?;
        if number::<4>(&end, 0) != Some(u64::from(END_64)) {
            return Err(damaged());
        }
        let wide = |at: usize| number::<8>(&end, at).ok_or_else(damaged);
        (count, size, start) = (wide(32)?, wide(40)?, wide(48)?);
    }
    if size > MOST_DIRECTORY {
        return Err(format!("has a directory of {size} bytes, more than the {MOST_DIRECTORY} that are read"));
    }
    if start.checked_add(size).is_none_or(|end| end > tail_start + at as u64) {
        return Err(damaged());
    }
    let directory = bytes_at(file, start, size)?;
    let (mut members, mut at) = (Vec::new(), 0);
    while at < directory.len() {
        let (member, next) = entry(&directory, at).ok_or_else(damaged)?;
        members.push(member);
        at = next;
    }
    if members.len() as u64 != count {
        return Err(damaged());
    }
    let mut names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("has two members {:?}; save it with one of each name", twice[0]));
    }
    Ok((members, start))
}

/// Reads an entry of the directory; returns where the next one begins.
fn entry(directory: &[u8], at: usize) -> Option<(Member, usize)> {
    if number::<4>(directory, at)? != u64::from(CENTRAL) {
        return None;
    }
    let (flags, method) = (number::<2>(directory, at + 8)?, number::<2>(directory, at + 10)?);
    let crc = number::<4>(directory, at + 16)? as u32;
    let (packed, bytes) = (number::<4>(directory, at + 20)?, number::<4>(directory, at + 24)?);
    let lengths = [28, 30, 32].map(|field| number::<2>(directory, at + field).map(|x| x as usize));
    let [Some(name), Some(extra), Some(comment)] = lengths else { return None };
    let header = number::<4>(directory, at + 42)?;
    let text = directory.get(at + 46..at + 46 + name)?;
    let extras = directory.get(at + 46 + name..at + 46 + name + extra)?;
    let next = at + 46 + name + extra + comment;
    // Fields that are too small hold ELSEWHERE, and their numbers come in this order.
    let mut wide = extra_64(extras).into_iter().flatten();
    let mut resolve = |x: u64| if x == u64::from(ELSEWHERE) { wide.next() } else { Some(x) };
    let (bytes, packed, header) = (resolve(bytes)?, resolve(packed)?, resolve(header)?);
    let text = String::from_utf8_lossy(text);
    let name = text.strip_suffix(".npy").unwrap_or(&text).to_owned();
    let stored = method == 0 && packed == bytes && flags & 1 == 0;
    (next <= directory.len()).then_some((Member { name, stored, crc, bytes, header }, next))
}

/// Returns the numbers of the ZIP64 field among extra fields.
fn extra_64(mut extras: &[u8]) -> Option<impl Iterator<Item = u64> + use<'_>> {
    loop {
        let (id, len) = (number::<2>(extras, 0)?, number::<2>(extras, 2)? as usize);
        let field = extras.get(4..4 + len)?;
        if id == u64::from(EXTRA_64) {
            return Some(field.chunks_exact(8).filter_map(|chunk| number::<8>(chunk, 0)));
        }
        extras = &extras[4 + len..];
    }
}

/// Reads the bytes of a member.
fn extract(file: &mut File, member: &Member, directory: u64) -> Checked<Vec<u8>> {
    if !member.stored {
        return Err("is compressed or encrypted; save the archive with numpy.savez".into());
    }
    let local = bytes_at(file, member.header, 30)?;
    if number::<4>(&local, 0) != Some(u64::from(LOCAL)) {
        return Err(damaged());
    }
    let [name, extra] = [26, 28].map(|at| number::<2>(&local, at).expect("30 bytes"));
    let text = bytes_at(file, member.header + 30, name)?;
    let text = String::from_utf8_lossy(&text);
    let start = member.header + 30 + name + extra;
    let fits = start.checked_add(member.bytes).is_some_and(|end| end <= directory);
    if text.strip_suffix(".npy").unwrap_or(&text) != member.name || !fits {
        return Err(damaged());
    }
    let bytes = bytes_at(file, start, member.bytes)?;
    if crc32fast::hash(&bytes) != member.crc {
        return Err("does not have its checksum; the file was damaged".into());
    }
    Ok(bytes)
}

/// Writes an archive, one array after the other.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: std::io::BufWriter<File>,
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
        Ok(Writer {
            path: path.to_path_buf(),
            file: std::io::BufWriter::new(file),
            at: 0,
            members: Vec::new(),
            names: BTreeSet::new(),
        })
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
        if self.names.contains(name) || name.len() > usize::from(u16::MAX) - 4 {
            return Err(Error::file(&self.path, format_args!("cannot hold a member {name:?}; give another name")));
        }
        let mut bytes = Vec::new();
        npy::write_elements_to(&mut bytes, dtype, shape, elements).map_err(|e| unwritable(&self.path, &e))?;
        let (crc, len) = (crc32fast::hash(&bytes), bytes.len() as u64);
        let member = Member { name: name.to_owned(), stored: true, crc, bytes: len, header: self.at };
        let head = local_header(&member);
        let put = self.file.write_all(&head).and_then(|()| self.file.write_all(&bytes));
        put.map_err(|e| unwritable(&self.path, &e))?;
        self.at += head.len() as u64 + len;
        self.names.insert(member.name.clone());
        self.members.push(member);
        Ok(())
    }

    /// Writes the directory and closes the file. Without it the file is no archive.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written.
    pub fn finish(mut self) -> Result<()> {
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
        put.map_err(|e| unwritable(&self.path, &e))
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
