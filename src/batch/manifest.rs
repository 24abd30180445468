//! The record of what a batch has done, so that it can be resumed, checked and merged (feature `cli`).
//!
//! ```text
//!   out/  journal.jsonl      one line when a tensor is through, as it happens: with times; what a resumed run reads
//!         manifest.json      the same at the end, by name and without times: equal runs leave equal bytes
//!         <tensor>/          u.npy s.npy vt.npy report.json: renamed into place as a whole, checksums in both files
//! ```
//!
//! Lines are only ever appended to the journal, each in one write. A run that is killed leaves at worst half a line at
//! its end (dropped on reading) or a tensor's directory that no line names (done again). Each of `N` shards has its own
//! two files, named `journal-I-of-N.jsonl` and `manifest-I-of-N.json`.
//!
//! Both files are input when they are read again: nothing in them is taken for a path. Directories are made from names
//! by [`directory`], which leaves no separator and no leading dot, and names of files must be one of [`FILES`].

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The version of the format of these files.
pub const FORMAT: u32 = 1;
/// The names of the files of one tensor.
pub const FILES: [&str; 4] = ["u.npy", "s.npy", "vt.npy", "report.json"];
/// The length in bytes of the longest line of a journal.
pub const MAX_LINE: usize = 1 << 20;

/// The result of a parser. The error is a sentence that goes after the path.
type Checked<T> = std::result::Result<T, String>;

/// The request of a batch. Two runs belong together if these are equal in all but the shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The version of the format, [`FORMAT`].
    pub format: u32,
    /// The version of the program.
    pub version: String,
    /// All options that the results depend on, by name.
    pub options: BTreeMap<String, serde_json::Value>,
    /// The tensors of all shards.
    pub inputs: Inputs,
    /// The number of the shard, from 1, and of shards.
    pub shard: [usize; 2],
}

/// A summary of the list of tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// The number of tensors.
    pub count: usize,
    /// The CRC-32 over names and sizes.
    pub crc32: u32,
}

impl Header {
    /// Returns the first difference to another run, apart from the shard: its name and the two values.
    pub fn difference(&self, other: &Header) -> Option<(String, String, String)> {
        let text = |x: &serde_json::Value| x.to_string();
        if self.version != other.version {
            return Some(("version".into(), self.version.clone(), other.version.clone()));
        }
        let names: std::collections::BTreeSet<&String> = self.options.keys().chain(other.options.keys()).collect();
        let none = serde_json::Value::Null;
        for name in names {
            let (a, b) = (self.options.get(name).unwrap_or(&none), other.options.get(name).unwrap_or(&none));
            if a != b {
                return Some((name.clone(), text(a), text(b)));
            }
        }
        (self.inputs != other.inputs).then(|| {
            let text = |i: &Inputs| format!("{} tensors (checksum {:08x})", i.count, i.crc32);
            ("the list of inputs".into(), text(&self.inputs), text(&other.inputs))
        })
    }
}

/// The way in which a tensor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The tensor is factored, and its factors are there.
    Done,
    /// The tensor could not be factored; `why` says why.
    Failed,
    /// The tensor was not to be factored; `why` says why.
    Kept,
}

/// The length and checksum of a file as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checksum {
    /// The length of the file in bytes.
    pub bytes: u64,
    /// The CRC-32 of the bytes of the file.
    pub crc32: u32,
}

/// The facts of a result that the report has, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultRecord {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// The name of the element type.
    pub dtype: String,
    /// The rank of the factors.
    pub rank: usize,
    /// The name of the method.
    pub method: String,
    /// The relative error, `‖W − U diag(s) Vᵀ‖_F / ‖W‖_F`.
    pub relative_error: f64,
    /// The kind of the error: `exact` or `estimate`.
    pub error_kind: String,
    /// The count of numbers in the matrix and in the factors.
    pub params: [usize; 2],
    /// The number of passes over the matrix.
    pub passes: usize,
}

/// The record of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The name of the tensor.
    pub name: String,
    /// The way in which the tensor ended.
    pub status: Status,
    /// The reason why there are no factors, if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The files of the tensor, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, Checksum>,
    /// The facts of the factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<ResultRecord>,
    /// The identity of the input, by which a change shows: its length, and a number made of its times of change and its
    /// place on the disk. Only journals have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<(u64, u64)>,
    /// The wall time in seconds. Only journals have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

impl Entry {
    /// Returns the entry without what two equal runs do not have in common.
    fn lasting(mut self) -> Self {
        (self.input, self.seconds) = (None, None);
        self
    }

    /// Checks that all files are in `out` and are what was written.
    ///
    /// # Errors
    /// A sentence that names the first file that is missing or different, and says what is wrong with it.
    pub fn verify(&self, out: &Path) -> Checked<()> {
        let dir = out.join(directory(&self.name));
        if self.files.len() != FILES.len() {
            return Err(format!("{}: the record does not list all its files", dir.display()));
        }
        for (name, want) in &self.files {
            let path = dir.join(name);
            let got = sum(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            if got != *want {
                return Err(format!("{}: is not what was written (torn or changed)", path.display()));
            }
        }
        Ok(())
    }

    fn check(&self) -> Checked<()> {
        match self.files.keys().find(|name| !FILES.contains(&name.as_str())) {
            Some(name) => Err(format!("names a file {name:?} that no tensor has")),
            None => Ok(()),
        }
    }
}

/// Computes the length and checksum of a file.
fn sum(path: &Path) -> std::io::Result<Checksum> {
    let mut file = File::open(path)?;
    let (mut hasher, mut bytes, mut buffer) = (crc32fast::Hasher::new(), 0, vec![0; 1 << 16]);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(Checksum { bytes, crc32: hasher.finalize() });
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
}

/// The record of a whole batch, written at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The request of the batch.
    pub header: Header,
    /// Whether every tensor of the shard has an entry.
    pub complete: bool,
    /// The entries, in the order of their names.
    pub tensors: Vec<Entry>,
}

impl Manifest {
    /// Makes the manifest from the entries of a journal.
    pub fn new(header: Header, complete: bool, entries: impl IntoIterator<Item = Entry>) -> Self {
        // Later entries replace earlier ones of the same name.
        let by_name: BTreeMap<String, Entry> = entries.into_iter().map(|e| (e.name.clone(), e.lasting())).collect();
        Manifest { header, complete, tensors: by_name.into_values().collect() }
    }

    /// Parses the bytes of a file.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Checked<Self> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| format!("is no manifest: {e}"))?;
        if manifest.header.format != FORMAT {
            return Err(format!("has format {}, not {FORMAT}; use the version that wrote it", manifest.header.format));
        }
        check_shard(manifest.header.shard)?;
        manifest.tensors.iter().try_for_each(Entry::check)?;
        if manifest.tensors.windows(2).any(|pair| pair[0].name >= pair[1].name) {
            return Err("has tensors out of order or twice".into());
        }
        Ok(manifest)
    }

    /// Returns the text of a file.
    ///
    /// # Errors
    /// A sentence of the serializer. Finite numbers cause none.
    pub fn text(&self) -> Checked<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n").map_err(|e| e.to_string())
    }
}

fn check_shard([index, count]: [usize; 2]) -> Checked<()> {
    if index == 0 || index > count { Err(format!("is of shard {index} of {count}, which is none")) } else { Ok(()) }
}

/// The contents of a journal: the header, the entries, and how many bytes of it are whole lines.
pub type Journaled = (Header, Vec<Entry>, usize);

/// Parses the bytes of a journal. What follows the last line that can be read is dropped.
///
/// # Errors
/// A sentence about a first line that is no header.
pub fn parse_journal(bytes: &[u8]) -> Checked<Journaled> {
    read_journal(bytes)
}

/// Reads a journal line by line, as [`parse_journal`] parses it. No more than [`MAX_LINE`] bytes of a file are held at
/// a time.
///
/// # Errors
/// Those of [`parse_journal`], and the error of a reader that fails.
pub fn read_journal(mut r: impl BufRead) -> Checked<Journaled> {
    let mut line = Vec::new();
    if !next_line(&mut r, &mut line)? {
        return Err("is no journal: its first line is not whole".into());
    }
    let header: Header = serde_json::from_slice(&line).map_err(|e| format!("is no journal: {e}"))?;
    if header.format != FORMAT {
        return Err(format!("has format {}, not {FORMAT}; use the version that wrote it", header.format));
    }
    check_shard(header.shard)?;
    let (mut entries, mut end) = (Vec::new(), line.len());
    while next_line(&mut r, &mut line)? {
        match serde_json::from_slice::<Entry>(&line) {
            Ok(entry) if entry.check().is_ok() => entries.push(entry),
            _ => break,
        }
        end += line.len();
    }
    Ok((header, entries, end))
}

/// Reads the next line with its end. Returns whether there is a whole one that is not too long.
fn next_line(r: &mut impl BufRead, line: &mut Vec<u8>) -> Checked<bool> {
    line.clear();
    let read = r.take(MAX_LINE as u64).read_until(b'\n', line);
    read.map_err(|e| format!("cannot be read: {e}; try again"))?;
    Ok(line.ends_with(b"\n"))
}

/// A journal that is being written. While it is open no other run can open it.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Starts a journal.
    ///
    /// # Errors
    /// [`Error::File`] if there is one already or it cannot be written.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(path);
        let file = file.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::file(path, "is of an earlier batch; add --resume to go on with it, or give another directory")
            }
            _ => unwritable(path, &e),
        })?;
        let mut journal = Journal { file, path: path.to_path_buf() };
        journal.lock()?;
        journal.line(header)?;
        journal.file.sync_all().map_err(|e| unwritable(path, &e))?;
        Ok(journal)
    }

    /// Resumes a journal, and cuts off what was half written. Returns the entries with it.
    ///
    /// # Errors
    /// [`Error::File`] if the journal cannot be read or written, has other options, or is in use.
    pub fn resume(path: &Path, header: &Header) -> Result<(Self, Vec<Entry>)> {
        // Opening a pipe would wait for its reader.
        if !fs::metadata(path).map_err(|e| unwritable(path, &e))?.is_file() {
            return Err(Error::file(path, "is no regular file, and no journal; give another directory"));
        }
        let file = OpenOptions::new().append(true).read(true).open(path).map_err(|e| unwritable(path, &e))?;
        let mut journal = Journal { file, path: path.to_path_buf() };
        journal.lock()?;
        let mut start = Vec::new();
        let text = serde_json::to_vec(header).map_err(|e| Error::file(path, e))?;
        (&journal.file).take(text.len() as u64 + 1).read_to_end(&mut start).map_err(|e| unwritable(path, &e))?;
        if text.starts_with(&start) || start.iter().all(|&byte| byte == 0) {
            // The run was killed before its first line was whole, so that nothing was done yet.
            journal.file.set_len(0).map_err(|e| unwritable(path, &e))?;
            journal.line(header)?;
            return Ok((journal, Vec::new()));
        }
        journal.file.rewind().map_err(|e| unwritable(path, &e))?;
        let (found, entries, end) =
            read_journal(BufReader::new(&journal.file)).map_err(|why| Error::file(path, why))?;
        if let Some((what, before, now)) = found.difference(header) {
            let why =
                format!("{what} was {before} and is {now} now; resume with what it was, or give another directory");
            return Err(Error::file(path, why));
        }
        journal.file.set_len(end as u64).map_err(|e| unwritable(path, &e))?;
        Ok((journal, entries))
    }

    fn lock(&self) -> Result<()> {
        match self.file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => Err(Error::file(&self.path, "is in use by another run; wait for it")),
            // A file system that cannot lock can still be written to.
            _ => Ok(()),
        }
    }

    /// Appends the entry of a tensor.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        self.line(entry)
    }

    /// Waits until the disk has all entries.
    ///
    /// # Errors
    /// [`Error::File`] if it does not take them.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| unwritable(&self.path, &e))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(value).map_err(|e| Error::file(&self.path, e))?;
        text.push(b'\n');
        let before = self.file.metadata().map(|meta| meta.len());
        self.file.write_all(&text).map_err(|e| {
            // Half a line would hide all that follow it, so that it is cut off.
            if let Ok(len) = before {
                let _ = self.file.set_len(len);
            }
            unwritable(&self.path, &e)
        })
    }
}

fn unwritable(path: &Path, e: &std::io::Error) -> Error {
    Error::file(path, format_args!("cannot be written: {e}; check the path, the permissions and the space"))
}

/// Makes a name for a tensor from its path below the directory that was given, without `.npy`. Whatever bytes the path
/// has, the name is text without control characters, and different paths have different names.
pub fn tensor_name(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let bytes = bytes.strip_suffix(b".npy").unwrap_or(bytes);
    let mut name = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '%' {
                percent(&mut name, c);
            } else {
                name.push(c);
            }
        }
        for byte in chunk.invalid() {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

/// Makes the name of the directory of a tensor: its name with everything but letters, digits, `.`, `_` and `-` written
/// as `%XX`, and a leading dot, too, so that it has no separators. Names too long for a file system end in a checksum.
pub fn directory(name: &str) -> String {
    const MAX: usize = 200;
    let mut dir = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_alphanumeric() || matches!(c, '_' | '-') || c == '.' && i > 0 {
            dir.push(c);
        } else {
            percent(&mut dir, c);
        }
    }
    if dir.is_empty() {
        return "%".into();
    }
    if dir.len() > MAX {
        let cut = (0..=MAX - 9).rev().find(|&i| dir.is_char_boundary(i)).unwrap_or(0);
        dir.truncate(cut);
        dir.push_str(&format!("~{:08x}", crc32fast::hash(name.as_bytes())));
    }
    dir
}

fn percent(text: &mut String, c: char) {
    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
        text.push_str(&format!("%{byte:02X}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_stay_inside_and_apart() {
        for (name, dir) in [
            ("model.layers.0.q_proj", "model.layers.0.q_proj"),
            ("a/b", "a%2Fb"),
            ("..", "%2E."),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            ("", "%"),
            ("a b%20", "a%20b%2520"),
            ("schicht.größe", "schicht.größe"),
        ] {
            assert_eq!(directory(name), dir, "{name:?}");
        }
        let (a, b) = (directory(&"ä".repeat(300)), directory(&("ä".repeat(299) + "b")));
        assert!(a != b && a.len() <= 200 && b.len() <= 200, "{a} {b}");
    }

    #[cfg(unix)]
    #[test]
    fn names_are_text_whatever_the_path() {
        use std::os::unix::ffi::OsStrExt;
        let name = |bytes: &[u8]| tensor_name(Path::new(std::ffi::OsStr::from_bytes(bytes)));
        assert_eq!(name(b"a/w.npy"), "a/w");
        assert_eq!(name(b"w\n\xff%.npy"), "w%0A%FF%25");
    }
}
