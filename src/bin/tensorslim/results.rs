//! Keeps what a batch leaves behind: one directory for each weight, the journal, the manifest.
//!
//! A result is written into a directory of its own under a hidden name and renamed as a whole, then the journal gets
//! its line. If the run is killed between the two, the directory is there without a line, and the weight is done again.
//!
//! Only a result is replaced by a result: a directory that holds anything else stays as it is, and of an old result
//! only the files are removed that results have, one by one.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use tensorslim::batch::manifest::{
    Checksum, Entry, FILES, Header, Journal, MAX_LINE, Manifest, Status, directory, parse_journal,
};
use tensorslim::{DType, Error, Factors, Scalar, npy};

use crate::failure::Failure;
use crate::guard::{self, Identity, if_there};
use crate::output;
use crate::state::StateFile;
use crate::writer::{self, Staged, TEMPORARY, unwritable};

/// The name of the directory of the spectra that a budget weighs.
pub(crate) const SPECTRA: &str = ".spectra";

/// The output directory of one run.
pub(crate) struct Results {
    places: Places,
    header: Header,
    journal: Journal,
    entries: BTreeMap<String, Entry>,
}

/// Returns the name of a shard's file: `manifest.json`, `manifest-2-of-8.json`.
pub(crate) fn shard_file(stem: &str, [index, count]: [usize; 2], ext: &str) -> String {
    if count == 1 { format!("{stem}.{ext}") } else { format!("{stem}-{index}-of-{count}.{ext}") }
}

/// Tells whether a directory holds the journal or the manifest of a batch, or of a shard of one. If so, the batch has
/// written what is below it.
///
/// # Errors
/// The error says that this is not known.
pub(crate) fn is_of_a_batch(dir: &Path) -> tensorslim::Result<bool> {
    Ok(records(dir)?.iter().any(|(_, header)| header.is_some()))
}

/// Tells whether a name in the output directory is one that the batch itself uses.
pub(crate) fn is_reserved(name: &str) -> bool {
    is_journal(name)
        || is_manifest(name)
        || ["summary.csv", "summary.json", "index.html"].contains(&name)
        || name.starts_with('.')
}

fn is_journal(name: &str) -> bool {
    is_shard_file(name, "journal", ".jsonl")
}

fn is_manifest(name: &str) -> bool {
    is_shard_file(name, "manifest", ".json")
}

/// Tells whether [`shard_file`] gives a name to some shard.
fn is_shard_file(name: &str, stem: &str, ext: &str) -> bool {
    let shard = name.strip_prefix(stem).and_then(|name| name.strip_suffix(ext));
    shard.is_some_and(|shard| {
        let numbers = shard.strip_prefix('-').and_then(|shard| shard.split_once("-of-"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        shard.is_empty() || numbers.is_some_and(|(index, count)| is_number(index) && is_number(count))
    })
}

/// Returns the files that have the names of journals and manifests in a directory, each with its header if it has one.
fn records(dir: &Path) -> tensorslim::Result<Vec<(PathBuf, Option<Header>)>> {
    let mut found = Vec::new();
    for entry in if_there(dir, fs::read_dir(dir))?.into_iter().flatten() {
        let Some(entry) = if_there(dir, entry)? else { continue };
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (is_journal, path) = (is_journal(&name), entry.path());
        if !is_journal && !is_manifest(&name) {
            continue;
        }
        // Opening a pipe would wait for its writer.
        let header = match if_there(&path, fs::metadata(&path))?.is_some_and(|meta| meta.is_file()) {
            true if is_journal => if_there(&path, first_line(&path))?
                .and_then(|line| parse_journal(&line).ok())
                .map(|(header, _, _)| header),
            true => if_there(&path, fs::read(&path))?
                .and_then(|bytes| Manifest::parse(&bytes).ok())
                .map(|manifest| manifest.header),
            false => None,
        };
        found.push((path, header));
    }
    Ok(found)
}

fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?.take(MAX_LINE as u64)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Refuses an output directory with a journal or a manifest of other options or inputs, and a file in the place of the
/// manifest that is no manifest.
fn check_records(out: &Path, header: &Header, what: Option<&Path>) -> Result<(), Failure> {
    let or = "give another --out, or --overwrite to start anew";
    for (path, found) in records(out)?.into_iter().filter(|(path, _)| Some(path.as_path()) != what) {
        let at = path.display();
        match found.map(|found| found.difference(header)) {
            None if path.ends_with(shard_file("manifest", header.shard, "json")) => {
                return Err(Failure(format!("{at}: is there and is no manifest of a batch; {or}")));
            }
            // The file is of a shard that is starting, or of a stranger: nothing is written there.
            None => {}
            Some(Some((what, before, now))) => {
                let why = format!("is of another batch: {what} was {before} there and is {now} here");
                return Err(Failure(format!("{at}: {why}; {or}")));
            }
            Some(None) => {}
        }
    }
    Ok(())
}

/// Refuses a place for a result that holds anything but a result. `is_listed` says that the journal has it.
fn check_place(dir: &Path, is_listed: bool, overwrite: bool, inputs: &HashSet<Identity>) -> Result<(), Failure> {
    let refuse = |why: String| Err(Failure(format!("{}: {why}", dir.display())));
    let meta = match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(|e| unwritable(dir, &e))?,
    };
    let has_input = |path: &Path| guard::identity(path).is_some_and(|it| inputs.contains(&it));
    if has_input(dir) {
        return refuse("is an input, too, and would be lost; give another --out".into());
    }
    if !meta.is_dir() {
        let may_go = is_listed || overwrite && (meta.is_file() || meta.is_symlink());
        return if may_go {
            Ok(())
        } else {
            refuse("is there and is no result of this batch; give another --out, or --overwrite to replace it".into())
        };
    }
    let mut is_empty = true;
    for entry in fs::read_dir(dir).map_err(|e| unwritable(dir, &e))? {
        let entry = entry.map_err(|e| unwritable(dir, &e))?;
        let (name, path) = (entry.file_name(), entry.path());
        is_empty = false;
        let is_of_a_result = name.to_str().is_some_and(|name| FILES.contains(&name));
        if !is_of_a_result || path.is_dir() {
            return refuse(format!("holds {}, which is of no result; give another --out", name.display()));
        }
        if has_input(&path) {
            return refuse(format!("holds {}, which is an input, too; give another --out", name.display()));
        }
    }
    if is_empty || is_listed || overwrite || output::report_in(dir)?.is_some() {
        return Ok(());
    }
    refuse("has no report of this program; give another --out, or --overwrite to replace it".into())
}

/// Removes a result: the files that results have, and the directory if nothing else is in it.
fn discard(dir: &Path) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |e| (path, e)
    };
    if !fs::symlink_metadata(dir).map_err(at(dir))?.is_dir() {
        return fs::remove_file(dir).map_err(at(dir));
    }
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| FILES.contains(&name) || name.starts_with(TEMPORARY)) {
            fs::remove_file(entry.path()).map_err(at(&entry.path()))?;
        }
    }
    fs::remove_dir(dir).map_err(at(dir))
}

/// Removes the hidden directory of a run that was killed, with the results that are half written.
fn discard_stage(stage: &Path) -> Result<(), (PathBuf, io::Error)> {
    let list = match fs::symlink_metadata(stage) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(meta) if meta.is_symlink() => return fs::remove_file(stage).map_err(|e| (stage.to_path_buf(), e)),
        _ => fs::read_dir(stage).map_err(|e| (stage.to_path_buf(), e))?,
    };
    for path in list.flatten().map(|entry| entry.path()) {
        // The file was being written, or is what a result replaced, or is a stranger's.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() || name.ends_with(".old") || name.starts_with(TEMPORARY) {
            discard(&path)?;
        }
    }
    fs::remove_dir(stage).map_err(|e| (stage.to_path_buf(), e))
}

/// Removes the spectra of a budget; anything else in their directory stays.
pub(crate) fn discard_spectra(out: &Path) {
    let dir = out.join(SPECTRA);
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_spectrum = |name: &str| {
            let name = name.strip_suffix(".failed").unwrap_or(name);
            let stamp = name.strip_suffix(".npy").and_then(|name| name.rsplit_once('.')?.1.split_once('-'));
            stamp.is_some_and(|(a, b)| [a, b].iter().all(|x| x.parse::<u64>().is_ok()))
        };
        if name.to_str().is_some_and(|name| is_spectrum(name) || name.starts_with(TEMPORARY)) {
            // A file that is left behind only takes space.
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

impl Results {
    /// Starts a run, or resumes what is there.
    ///
    /// # Errors
    /// The failure says that another run uses the directory, that it holds a batch of other options, or that something
    /// that is no result is in the place of one of `names`.
    pub(crate) fn open(
        out: &Path,
        header: Header,
        (resume, overwrite): (bool, bool),
        (names, inputs): (&[String], &HashSet<Identity>),
    ) -> Result<Self, Failure> {
        output::prepare(out)?;
        let path = out.join(shard_file("journal", header.shard, "jsonl"));
        let check = |entries: &[Entry], overwrite: bool| {
            let listed: HashSet<&str> =
                entries.iter().filter(|e| e.status == Status::Done).map(|e| e.name.as_str()).collect();
            let at = |name: &String| (out.join(directory(name)), listed.contains(name.as_str()));
            names.iter().map(at).try_for_each(|(dir, is_listed)| check_place(&dir, is_listed, overwrite, inputs))
        };
        if overwrite {
            check(&[], true)?;
            start_anew(out, &header)?;
        }
        let is_there = path.exists();
        let (journal, entries) = match resume && is_there {
            true => {
                let (journal, entries) = Journal::resume(&path, &header)?;
                check_records(out, &header, Some(&path))?;
                check(&entries, false)?;
                (journal, entries)
            }
            false => {
                // The journal of the same name is checked where it is made.
                if !is_there {
                    check_records(out, &header, None)?;
                    check(&[], overwrite)?;
                }
                let journal = Journal::create(&path, &header)?;
                writer::sync_directory(out)?;
                // Another batch may have started in the same moment. Then one of them, or both, see the journal of the
                // other.
                if let Err(other) = check_records(out, &header, Some(&path)) {
                    let _ = fs::remove_file(&path);
                    return Err(other);
                }
                (journal, Vec::new())
            }
        };
        let stage = out.join(format!(".stage-{}-of-{}", header.shard[0], header.shard[1]));
        // The hidden directory has what a killed run left half written. The lock of the journal says that nobody else
        // uses it.
        discard_stage(&stage).map_err(|(path, e)| {
            Failure(format!("{}: is left of an earlier run and cannot be removed: {e}; move it", path.display()))
        })?;
        fs::create_dir_all(&stage).map_err(|e| unwritable(&stage, &e))?;
        let entries = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
        let record = (guard::identity(&path), path);
        Ok(Results { places: Places { out: out.to_path_buf(), stage, record }, header, journal, entries })
    }

    /// Tells whether the result of this input is there, whole, and of the input as it is now.
    pub(crate) fn has(&self, name: &str, stamp: (u64, u64)) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|e| e.status == Status::Done && e.input == Some(stamp) && e.verify(&self.places.out).is_ok())
    }

    /// Tells whether nothing is left to do for this input: its result is there, or it was found to stay as it is.
    pub(crate) fn is_settled(&self, name: &str, stamp: (u64, u64)) -> bool {
        let kept = self.entries.get(name).is_some_and(|e| e.status == Status::Kept && e.input == Some(stamp));
        kept || self.has(name, stamp)
    }

    /// Returns the directories that results are written through.
    pub(crate) fn places(&self) -> Places {
        self.places.clone()
    }

    /// Records a weight.
    pub(crate) fn record(&mut self, entry: Entry) -> tensorslim::Result<()> {
        self.journal.append(&entry)?;
        self.entries.insert(entry.name.clone(), entry);
        Ok(())
    }

    /// Writes the manifest of the entries of `names` that are recorded and whose results are there.
    pub(crate) fn finish(&self, names: &[String]) -> Result<Manifest, Failure> {
        let Places { out, stage, .. } = &self.places;
        self.places.check()?;
        // A manifest says that the work is done, and some file systems report what they could not write only here.
        self.journal.sync()?;
        let mine = names.iter().filter_map(|name| self.entries.get(name).cloned()).map(|mut entry| {
            if entry.status == Status::Done && !is_there(out, &entry) {
                entry.status = Status::Failed;
                entry.why =
                    Some("its files were moved or removed while the batch ran; run it again with --resume".into());
            }
            entry
        });
        let complete = names.iter().all(|name| self.entries.contains_key(name));
        let manifest = Manifest::new(self.header.clone(), complete, mine);
        let text = manifest.text().map_err(Failure)?;
        let path = out.join(shard_file("manifest", self.header.shard, "json"));
        let put = writer::put_through(Some(stage), &path, &[text.as_bytes()]);
        // What has gone in this moment is said to have gone.
        put.map_err(|e| self.places.check().err().unwrap_or(e))?;
        self.places.check()?;
        Ok(manifest)
    }

    /// Removes the hidden directory.
    pub(crate) fn close(self) {
        // A directory that is left behind is removed by the next run.
        let _ = discard_stage(&self.places.stage);
    }
}

/// Tells whether the files of a result are there, with the lengths that they had.
fn is_there(out: &Path, entry: &Entry) -> bool {
    let dir = out.join(directory(&entry.name));
    entry.files.iter().all(|(name, sum)| fs::metadata(dir.join(name)).is_ok_and(|meta| meta.len() == sum.bytes))
}

/// Removes the journals and manifests of what was in a directory; its results stay until others replace them. It fails
/// if another run uses one of them.
fn start_anew(out: &Path, header: &Header) -> Result<(), Failure> {
    let own = [("journal", "jsonl"), ("manifest", "json")].map(|(stem, ext)| shard_file(stem, header.shard, ext));
    for (path, found) in records(out)? {
        // Journals of the other shards of this batch are theirs, and a file that is no record belongs to somebody else.
        let is_own = own.iter().any(|name| path.file_name().is_some_and(|of| of == name.as_str()));
        if !is_own && found.is_none_or(|found| found.difference(header).is_none()) {
            continue;
        }
        writer::target(&path)?; // a directory or a device stays
        let in_use = File::open(&path).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)));
        if in_use {
            return Err(Failure(format!("{}: is in use by another run; wait for it", path.display())));
        }
        fs::remove_file(&path).map_err(|e| unwritable(&path, &e))?;
    }
    Ok(())
}

/// The places of results, usable from all workers at once.
#[derive(Clone)]
pub(crate) struct Places {
    out: PathBuf,
    stage: PathBuf,
    /// The journal that this run has open, and its path.
    record: (Option<Identity>, PathBuf),
}

impl Places {
    /// Refuses to write where the output directory is another one than at the start, because results without their
    /// journal are lost to a resumed run.
    fn check(&self) -> tensorslim::Result<()> {
        let (journal, path) = &self.record;
        if guard::identity(path) == *journal {
            return Ok(());
        }
        let why = "was moved or removed while the batch ran; where it is now, go on with --resume, or start anew";
        Err(Error::file(&self.out, why))
    }

    /// Writes the factors and the report of a weight, and makes them appear.
    pub(crate) fn write<T: Scalar>(
        &self,
        name: &str,
        dtype: DType,
        f: &Factors<T>,
        report: &str,
    ) -> tensorslim::Result<BTreeMap<String, Checksum>> {
        let dir = self.stage.join(directory(name));
        let target = self.out.join(directory(name));
        let done = || -> tensorslim::Result<_> {
            self.check()?;
            fs::create_dir_all(&dir).map_err(|e| unwritable(&dir, &e))?;
            let staged = vec![
                Staged::new(&dir.join("u.npy"), |w| {
                    npy::write_elements_to(w, dtype, &[f.u().nrows(), f.rank()], f.u().as_slice())
                })?,
                Staged::new(&dir.join("s.npy"), |w| npy::write_elements_to(w, dtype, &[f.rank()], f.s()))?,
                Staged::new(&dir.join("vt.npy"), |w| {
                    npy::write_elements_to(w, dtype, &[f.rank(), f.vt().ncols()], f.vt().as_slice())
                })?,
                Staged::new(&dir.join("report.json"), |w| w.write_all(report.as_bytes()))?,
            ];
            let files = staged.iter().map(|file| (file.name().to_string(), file.sum())).collect();
            writer::publish(staged)?;
            // A rename replaces only an empty directory, so that an old result is moved away first, also in one step.
            let old = self.stage.join(format!("{}.old", directory(name)));
            let is_replaced = match fs::rename(&target, &old) {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => false,
                Err(e) => return Err(unwritable(&target, &e)),
            };
            fs::rename(&dir, &target).map_err(|e| unwritable(&target, &e))?;
            writer::sync_directory(&self.out)?;
            if is_replaced {
                discard(&old).map_err(|(path, e)| unwritable(&path, &e))?;
            }
            Ok(files)
        };
        done().map_err(|e| {
            // On a full disk, room for the next one.
            let _ = discard(&dir);
            self.check().err().unwrap_or(e)
        })
    }

    /// Returns the file that keeps the state of a single pass over a weight. It is for the input as it is now; one that
    /// changed has another name.
    pub(crate) fn checkpoint(&self, name: &str, (bytes, changed): (u64, u64)) -> StateFile {
        let file = format!("{}.{bytes}-{changed}.state", directory(name));
        StateFile::hidden(self.out.join(".states").join(&file), &file, &self.stage)
    }

    /// Returns the hidden directory that files are written through.
    pub(crate) fn stage(&self) -> &Path {
        &self.stage
    }

    /// Returns the place of the measured spectra, kept for a resumed run: files of f64 in a hidden directory of their
    /// own.
    pub(crate) fn spectra(&self) -> PathBuf {
        self.out.join(SPECTRA)
    }
}
