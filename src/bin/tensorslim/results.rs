//! What a batch leaves behind: one directory for each weight, the journal, the manifest.
//!
//! A result is written into a directory of its own under a hidden name and renamed as a whole, then the journal gets its line. Killed between the two,
//! the directory is there without a line, and the weight is done again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tensorslim::batch::manifest::{Entry, Header, Journal, MAX_LINE, Manifest, Status, Sum, directory, parse_journal};
use tensorslim::svd::Checkpoint;
use tensorslim::{DType, Error, Factors, Scalar, npy};

use crate::Failure;
use crate::inputs::stamp;

/// The directory of what a budget weighs.
pub(crate) const SPECTRA: &str = ".spectra";

/// The output directory of one run.
pub(crate) struct Results {
    out: PathBuf,
    stage: PathBuf,
    header: Header,
    journal: Journal,
    entries: BTreeMap<String, Entry>,
}

/// The name of a shard's file: `manifest.json`, `manifest-2-of-8.json`.
pub(crate) fn shard_file(stem: &str, [index, count]: [usize; 2], ext: &str) -> String {
    if count == 1 { format!("{stem}.{ext}") } else { format!("{stem}-{index}-of-{count}.{ext}") }
}

/// Whether a directory holds the journal or the manifest of a batch, or of a shard of one: what is below it, the batch has written.
pub(crate) fn is_of_a_batch(dir: &Path) -> bool {
    let is_journal = |path: &Path| {
        let mut first = Vec::new();
        let line =
            File::open(path).map(|file| BufReader::new(file.take(MAX_LINE as u64)).read_until(b'\n', &mut first));
        line.is_ok() && parse_journal(&first).is_ok()
    };
    let is_manifest = |path: &Path| fs::read(path).is_ok_and(|bytes| Manifest::parse(&bytes).is_ok());
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let (name, path) = (entry.file_name(), entry.path());
        let of =
            |stem: &str, end: &str| name.to_str().is_some_and(|name| name.starts_with(stem) && name.ends_with(end));
        // Opening a pipe would wait for its writer.
        of("journal", ".jsonl") && path.is_file() && is_journal(&path)
            || of("manifest", ".json") && path.is_file() && is_manifest(&path)
    })
}

impl Results {
    /// Starts, or goes on with what is there.
    pub(crate) fn open(out: &Path, header: Header, resume: bool) -> Result<Self, Failure> {
        crate::output::prepare(out)?;
        let path = out.join(shard_file("journal", header.shard, "jsonl"));
        let (journal, entries) = match resume && path.exists() {
            true => Journal::resume(&path, &header)?,
            false => (Journal::create(&path, &header)?, Vec::new()),
        };
        let stage = out.join(format!(".stage-{}-of-{}", header.shard[0], header.shard[1]));
        // What a killed run left half written. The journal's lock says that it is nobody else's.
        match fs::remove_dir_all(&stage) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unwritable(&stage, &e).into()),
            _ => {}
        }
        fs::create_dir_all(&stage).map_err(|e| unwritable(&stage, &e))?;
        let entries = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
        Ok(Results { out: out.to_path_buf(), stage, header, journal, entries })
    }

    /// Whether this input's result is there, of the input as it is now, and whole.
    pub(crate) fn has(&self, name: &str, stamp: (u64, u64)) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|e| e.status == Status::Done && e.input == Some(stamp) && e.verify(&self.out).is_ok())
    }

    /// Whether nothing is left to do for this input: its result is there, or it was found to stay as it is.
    pub(crate) fn is_settled(&self, name: &str, stamp: (u64, u64)) -> bool {
        let kept = self.entries.get(name).is_some_and(|e| e.status == Status::Kept && e.input == Some(stamp));
        kept || self.has(name, stamp)
    }

    /// The directories that results are written through.
    pub(crate) fn places(&self) -> Places {
        Places { out: self.out.clone(), stage: self.stage.clone() }
    }

    /// Records a weight.
    pub(crate) fn record(&mut self, entry: Entry) -> tensorslim::Result<()> {
        self.journal.append(&entry)?;
        self.entries.insert(entry.name.clone(), entry);
        Ok(())
    }

    /// Writes the manifest: what is recorded of `names`.
    pub(crate) fn finish(&self, names: &[String]) -> Result<Manifest, Failure> {
        let mine = names.iter().filter_map(|name| self.entries.get(name).cloned());
        let complete = names.iter().all(|name| self.entries.contains_key(name));
        let manifest = Manifest::new(self.header.clone(), complete, mine);
        let text = manifest.text().map_err(Failure)?;
        crate::output::replace(&self.out, &shard_file("manifest", self.header.shard, "json"), &text)?;
        Ok(manifest)
    }

    /// Takes the hidden directory away.
    pub(crate) fn close(self) {
        // Left behind, it is removed by the next run.
        let _ = fs::remove_dir_all(&self.stage);
    }
}

/// Where results go: usable from all workers at once.
pub(crate) struct Places {
    out: PathBuf,
    stage: PathBuf,
}

impl Places {
    /// Writes the factors and the report of a weight, and makes them appear.
    pub(crate) fn write<T: Scalar>(
        &self,
        name: &str,
        dtype: DType,
        f: &Factors<T>,
        report: &str,
    ) -> tensorslim::Result<BTreeMap<String, Sum>> {
        let dir = self.stage.join(directory(name));
        let target = self.out.join(directory(name));
        let done = || -> Result<_, (PathBuf, io::Error)> {
            let at = |path: &Path| {
                let path = path.to_path_buf();
                move |e| (path.clone(), e)
            };
            fs::create_dir_all(&dir).map_err(at(&dir))?;
            let mut files = BTreeMap::new();
            let mut put = |file: &str, write: &dyn Fn(&mut Summed) -> io::Result<()>| {
                let path = dir.join(file);
                let sum = Summed::create(&path, write).map_err(at(&path))?;
                files.insert(file.to_string(), sum);
                Ok(())
            };
            put("u.npy", &|w| npy::write_elements_to(w, dtype, &[f.u().nrows(), f.rank()], f.u().as_slice()))?;
            put("s.npy", &|w| npy::write_elements_to(w, dtype, &[f.rank()], f.s()))?;
            put("vt.npy", &|w| npy::write_elements_to(w, dtype, &[f.rank(), f.vt().ncols()], f.vt().as_slice()))?;
            put("report.json", &|w| w.write_all(report.as_bytes()))?;
            // Only an empty directory is replaced by a rename: an old result goes first, also in one step.
            let old = self.stage.join(format!("{}.old", directory(name)));
            match fs::rename(&target, &old) {
                Ok(()) => fs::remove_dir_all(&old).map_err(at(&old))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err((target.clone(), e)),
            }
            fs::rename(&dir, &target).map_err(at(&target))?;
            Ok(files)
        };
        done().map_err(|(path, e)| {
            // On a full disk, room for the next one.
            let _ = fs::remove_dir_all(&dir);
            unwritable(&path, &e)
        })
    }

    /// Where the state of a single pass over a weight is kept: of the input as it is now, one that changed has another name.
    pub(crate) fn checkpoint(&self, name: &str, (bytes, changed): (u64, u64)) -> StateFile {
        StateFile(self.out.join(".states").join(format!("{}.{bytes}-{changed}.state", directory(name))))
    }

    /// What was measured of a weight's spectrum, kept for a run that goes on: a file of f64 in the hidden directory of its own.
    pub(crate) fn spectra(&self) -> PathBuf {
        self.out.join(SPECTRA)
    }
}

/// The state of a single pass in a file; its directory is made when there is something to save, and goes with its last state.
pub(crate) struct StateFile(PathBuf);

impl StateFile {
    /// The factors are there: the state is of no more use.
    pub(crate) fn remove(&self) {
        // What is not there need not go; a directory with other states stays.
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_file(part_of(&self.0));
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

impl Checkpoint for StateFile {
    fn load(&self) -> Option<Vec<u8>> {
        fs::read(&self.0).ok()
    }

    fn save(&self, state: &[u8]) -> tensorslim::Result<()> {
        self.0.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| unwritable(&self.0, &e))?;
        replace_whole(&self.0, &[state])
    }
}

/// The state of a single pass over one file, in a place that the user has named: with the length and time of change of the file in front.
pub(crate) struct Stamped {
    path: PathBuf,
    stamp: [u8; 16],
}

impl Stamped {
    pub(crate) fn new(path: &Path, input: &Path) -> Self {
        let (bytes, changed) = stamp(input);
        let mut stamp = [0; 16];
        stamp[..8].copy_from_slice(&bytes.to_le_bytes());
        stamp[8..].copy_from_slice(&changed.to_le_bytes());
        Stamped { path: path.to_path_buf(), stamp }
    }

    /// The factors are there: the state is of no more use.
    pub(crate) fn remove(&self) {
        // Of a short pass none was saved.
        let _ = fs::remove_file(&self.path);
    }
}

impl Checkpoint for Stamped {
    fn load(&self) -> Option<Vec<u8>> {
        let mut bytes = fs::read(&self.path).ok().filter(|bytes| bytes.starts_with(&self.stamp))?;
        bytes.drain(..self.stamp.len());
        Some(bytes)
    }

    fn save(&self, state: &[u8]) -> tensorslim::Result<()> {
        replace_whole(&self.path, &[&self.stamp, state])
    }
}

/// The name under which a file is written.
fn part_of(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

/// Writes a file that is whole at any time.
pub(crate) fn replace_whole(path: &Path, parts: &[&[u8]]) -> tensorslim::Result<()> {
    let part = part_of(path);
    let put = || {
        let mut file = File::create(&part)?;
        parts.iter().try_for_each(|bytes| file.write_all(bytes))?;
        fs::rename(&part, path)
    };
    put().map_err(|e| unwritable(path, &e))
}

/// A file that is summed as it is written.
struct Summed {
    file: BufWriter<File>,
    hasher: crc32fast::Hasher,
    bytes: u64,
}

impl Summed {
    fn create(path: &Path, write: &dyn Fn(&mut Summed) -> io::Result<()>) -> io::Result<Sum> {
        let mut w = Summed { file: BufWriter::new(File::create(path)?), hasher: crc32fast::Hasher::new(), bytes: 0 };
        write(&mut w)?;
        w.file.flush()?;
        Ok(Sum { bytes: w.bytes, crc32: w.hasher.finalize() })
    }
}

impl Write for Summed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.file.write(data)?;
        self.hasher.update(&data[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn unwritable(path: &Path, e: &io::Error) -> Error {
    Error::file(path, format_args!("cannot be written: {e}; check the permissions and the space"))
}
