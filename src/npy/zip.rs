//! The directory of a ZIP archive of stored members, of which none is believed: see [`npz`](crate::npz).

use std::io::{Read, Seek, SeekFrom};

/// The largest directory that is read: some 10^6 members.
const MOST_DIRECTORY: u64 = 64 << 20;
/// The most bytes of a comment behind the end record.
const MOST_COMMENT: u64 = u16::MAX as u64;
pub(crate) const LOCAL: u32 = 0x0403_4b50;
pub(crate) const CENTRAL: u32 = 0x0201_4b50;
pub(crate) const END: u32 = 0x0605_4b50;
pub(crate) const END_64: u32 = 0x0606_4b50;
pub(crate) const LOCATOR_64: u32 = 0x0706_4b50;
/// The value of a field whose number is in an extra field.
pub(crate) const ELSEWHERE: u32 = u32::MAX;
/// The number of the extra field of ZIP64.
pub(crate) const EXTRA_64: u16 = 1;

/// A result whose error is a sentence that goes after a path.
pub(crate) type Checked<T> = std::result::Result<T, String>;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    /// The name, without `.npy`.
    pub(crate) name: String,
    /// Whether the name had `.npy`, as arrays do.
    pub(crate) is_array: bool,
    /// Whether it is neither compressed nor encrypted.
    pub(crate) stored: bool,
    pub(crate) crc: u32,
    pub(crate) bytes: u64,
    /// The place of its header.
    pub(crate) header: u64,
}

impl Member {
    /// Refuses bytes of another checksum.
    pub(crate) fn check(&self, sum: u32) -> Checked<()> {
        match sum == self.crc {
            true => Ok(()),
            false => Err("does not have its checksum; the file was damaged".into()),
        }
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
pub(crate) fn bytes_at<R: Read + Seek>(file: &mut R, start: u64, len: u64) -> Checked<Vec<u8>> {
    let wrong = |e: std::io::Error| format!("cannot be read: {e}; try again");
    file.seek(SeekFrom::Start(start)).map_err(wrong)?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err("ends before what its directory says; save it again".into()) }
}

/// Reads the directory of an archive. Returns its members and its place, behind all of them.
pub(crate) fn members<R: Read + Seek>(file: &mut R) -> Checked<(Vec<Member>, u64)> {
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
    let (stored, is_array) = (method == 0 && packed == bytes && flags & 1 == 0, text.ends_with(".npy"));
    (next <= directory.len()).then_some((Member { name, is_array, stored, crc, bytes, header }, next))
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

/// Returns where the bytes of a member begin: within the file, before the directory, behind a header of the same name.
pub(crate) fn start_of<R: Read + Seek>(file: &mut R, member: &Member, directory: u64) -> Checked<u64> {
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
    Ok(start)
}

/// Refuses a member, which begins at `start`, that does not have its checksum.
pub(crate) fn check_sum<R: Read + Seek>(file: &mut R, member: &Member, start: u64) -> Checked<()> {
    let wrong = |e: std::io::Error| format!("cannot be read: {e}; try again");
    file.seek(SeekFrom::Start(start)).map_err(wrong)?;
    let (mut part, mut file) = (vec![0; 1 << 20], file.take(member.bytes));
    let mut sum = crc32fast::Hasher::new();
    loop {
        match file.read(&mut part).map_err(wrong)? {
            0 => break,
            read => sum.update(&part[..read]),
        }
    }
    member.check(sum.finalize())
}
