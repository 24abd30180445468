//! Writes the files of factors, and those of a report with what it reports on.
//!
//! All of them are complete before the first appears, and the report comes last (see [`writer`]). The report of factors
//! has the length and the checksum of each file: a program that is stopped between two of them leaves a report that
//! does not describe the files beside it, which shows, or one that has no checksums yet. Either lists every file that
//! is there, so that the next run replaces them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use tensorslim::batch::manifest::Checksum;
use tensorslim::{DType, Element, Error, Factors, Matrix, Pivoted, Scalar, Split, TensorRef, npy, npz};

use crate::args::Form;
use crate::failure::Failure;
use crate::guard::if_there;
use crate::writer::{self, Staged};

/// The name of the file that says what the factors are.
const REPORT: &str = "report.json";
/// The longest report that is read again, in bytes.
const MAX_REPORT: u64 = 1 << 20;

/// Makes `dir` before the work, so that a directory that cannot be made is known before it.
pub(crate) fn prepare(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|e| {
        Failure(format!("{}: cannot make this directory: {e}; check the path and the permissions", dir.display()))
    })
}

/// Refuses a file in the place of the directory of factors.
pub(crate) fn check_place(dir: &Path) -> Result<(), Failure> {
    match fs::metadata(dir) {
        Ok(there) if !there.is_dir() => Err(Failure(format!(
            "{}: is a file, and --out makes a directory for several files; give another name",
            dir.display()
        ))),
        _ => Ok(()),
    }
}

/// Returns the names of the files of a form.
pub(crate) fn names(form: Form) -> Vec<&'static str> {
    match form {
        Form::Svd => vec!["u.npy", "s.npy", "vt.npy"],
        Form::Split => vec!["up.npy", "down.npy"],
        Form::Pivot => vec!["rows.npy", "coefficients.npy", "pivots.npy"],
    }
}

/// Returns the report of factors in `dir`, if there is one of this program.
///
/// # Errors
/// The error says that this is not known.
pub(crate) fn report_in(dir: &Path) -> tensorslim::Result<Option<Value>> {
    let path = dir.join(REPORT);
    // Opening a pipe would wait for its writer, and no report is that long.
    let is_short = |meta: fs::Metadata| meta.is_file() && meta.len() <= MAX_REPORT;
    let bytes = match if_there(&path, fs::metadata(&path))?.is_some_and(is_short) {
        true => if_there(&path, fs::read(&path))?,
        false => None,
    };
    let report = bytes.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    // Other programs write files of that name, too.
    Ok(report.filter(is_report))
}

/// Tells whether a value has what the reports of this program have.
fn is_report(r: &Value) -> bool {
    r["version"].is_string() && r["method"].is_string() && r["rank"].is_u64()
}

/// Returns the files of factors in `dir`, of any form, that a report of `factor` there lists.
///
/// # Errors
/// Those of [`report_in`].
pub(crate) fn listed(dir: &Path) -> tensorslim::Result<Vec<&'static str>> {
    let report = report_in(dir)?;
    let Some(files) = report.as_ref().and_then(|r| r["written"]["files"].as_array()) else { return Ok(Vec::new()) };
    let all = [Form::Svd, Form::Split, Form::Pivot].into_iter().flat_map(names);
    Ok(all.filter(|name| files.iter().any(|file| file == name)).collect())
}

/// Returns the names of the files that factors of a form in `dir` replace: their own, and those of the factors before.
pub(crate) fn replaced(dir: &Path, form: Form) -> tensorslim::Result<Vec<&'static str>> {
    let mut all = names(form);
    all.extend(listed(dir)?.into_iter().filter(|name| !names(form).contains(name)));
    Ok(all)
}

/// Returns the files that factors of a form in `dir` replace, and their report.
pub(crate) fn taken(dir: &Path, form: Form) -> tensorslim::Result<Vec<PathBuf>> {
    Ok(replaced(dir, form)?.into_iter().chain([REPORT]).map(|name| dir.join(name)).collect())
}

/// Refuses a directory where a file of the names that factors have is not of this program.
pub(crate) fn check_dir(dir: &Path, form: Form, overwrite: bool) -> Result<(), Failure> {
    let listed = listed(dir)?;
    for name in names(form).into_iter().chain([REPORT]) {
        let path = dir.join(name);
        let target = writer::target(&path)?;
        let is_ours = listed.contains(&name) || name == REPORT && !listed.is_empty();
        if !is_ours && !overwrite && fs::symlink_metadata(&target).is_ok() {
            return Err(Failure(format!(
                "{}: is there, and no report of this program beside it lists it; give another --out, or --overwrite to \
                 replace it",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Tells whether factors of this name are one archive.
pub(crate) fn is_archive(out: &Path) -> bool {
    out.extension().is_some_and(|ext| ext == "npz")
}

/// Returns the directory that is made for factors: that of the files, or the one that an archive is in.
pub(crate) fn directory_of(out: &Path) -> &Path {
    if is_archive(out) { writer::directory_of(out) } else { out }
}

/// Refuses to replace an archive that this program has not written.
pub(crate) fn check_archive(path: &Path, overwrite: bool) -> Result<(), Failure> {
    let target = writer::target(path)?;
    let is_ours = || -> Option<bool> {
        let report = npz::Archive::open(&target).ok()?.read_text("report").ok()?;
        Some(is_report(&serde_json::from_str(&report).ok()?))
    };
    if overwrite || fs::symlink_metadata(&target).is_err() || is_ours() == Some(true) {
        return Ok(());
    }
    let path = path.display();
    Err(Failure(format!(
        "{path}: is there and has no report of this program; give another --out, or --overwrite to replace it"
    )))
}

/// An array of factors.
enum Array<'a, T> {
    Matrix(&'a Matrix<T>),
    Values(&'a [T]),
    Indices(&'a [usize]),
}

/// Gives `put` the arrays of a form, each with its name, in the order of [`names`].
fn for_each_array<T: Scalar>(
    form: Form,
    f: &Factors<T>,
    pivoted: Option<&Pivoted<T>>,
    put: &mut dyn FnMut(&str, Array<'_, T>) -> tensorslim::Result<()>,
) -> tensorslim::Result<()> {
    match (form, pivoted) {
        (Form::Pivot, Some(p)) => {
            put("rows", Array::Matrix(p.rows()))?;
            put("coefficients", Array::Matrix(p.coefficients()))?;
            put("pivots", Array::Indices(p.pivots()))
        }
        (Form::Split, _) => {
            let (up, down) = f.split(Split::Balanced);
            put("up", Array::Matrix(&up))?;
            put("down", Array::Matrix(&down))
        }
        _ => {
            put("u", Array::Matrix(f.u()))?;
            put("s", Array::Values(f.s()))?;
            put("vt", Array::Matrix(f.vt()))
        }
    }
}

/// Returns the members of an archive of factors.
pub(crate) fn members(form: Form) -> Vec<&'static str> {
    let name = |file: &'static str| file.strip_suffix(".npy").unwrap_or(file);
    names(form).into_iter().map(name).chain(["report"]).collect()
}

/// Writes factors and report as one archive, which does not appear yet.
pub(crate) fn archive<T: Scalar>(
    path: &Path,
    (form, dtype): (Form, DType),
    f: &Factors<T>,
    pivoted: Option<&Pivoted<T>>,
    report: &str,
) -> tensorslim::Result<Staged> {
    let write = |sink: &mut writer::Sink| -> tensorslim::Result<()> {
        let mut archive = npz::Writer::new(sink);
        for_each_array(form, f, pivoted, &mut |name, array| match array {
            Array::Matrix(a) => archive.matrix(name, a, dtype),
            Array::Values(s) => archive.array(name, &[s.len()], s, dtype),
            Array::Indices(i) => archive.indices(name, i),
        })?;
        archive.text("report", report)?;
        archive.finish().map(|_| ())
    };
    Staged::new(path, |sink| write(sink).map_err(std::io::Error::other))
}

/// Writes what factors leave of a weight, in its shape and element type, which does not appear yet.
pub(crate) fn residual<T: Scalar>(
    path: &Path,
    dtype: DType,
    shape: &[usize],
    f: &Factors<T>,
    w: &TensorRef<'_>,
) -> tensorslim::Result<Staged> {
    fn put<T: Scalar, E: Element>(
        path: &Path,
        shape: &[usize],
        f: &Factors<T>,
        w: &TensorRef<'_>,
    ) -> tensorslim::Result<Staged> {
        let left = f.residual::<E>(w)?;
        Staged::new(path, |sink| npy::write_elements_to(sink, E::DTYPE, shape, left.as_slice()))
    }
    match dtype {
        DType::F16 => put::<T, half::f16>(path, shape, f, w),
        DType::BF16 => put::<T, half::bf16>(path, shape, f, w),
        DType::F64 => put::<T, f64>(path, shape, f, w),
        _ => put::<T, f32>(path, shape, f, w),
    }
}

/// Returns the file of the long factor in a form, that of a matrix that is `wide` or not, and its elements.
pub(crate) fn long_factor<T: Scalar>(form: Form, wide: bool, f: &Factors<T>) -> (&'static str, Cow<'_, [T]>) {
    let (left, right) = match form {
        Form::Split => {
            let (up, down) = f.split(Split::Balanced);
            return if wide { ("down.npy", down.into_vec().into()) } else { ("up.npy", up.into_vec().into()) };
        }
        _ => (f.u(), f.vt()),
    };
    if wide { ("vt.npy", right.as_slice().into()) } else { ("u.npy", left.as_slice().into()) }
}

/// Factors that are written and do not appear yet.
pub(crate) struct Written(Vec<Staged>);

impl Written {
    /// Writes the factors in `dir`, rounded to `dtype`: `u.npy` (m×k), `s.npy` (k) and `vt.npy` (k×n), or as two layers
    /// `up.npy` (m×k) and `down.npy` (k×n), or, `pivoted`, `rows.npy` (k×n), `coefficients.npy` ((m−k)×k) and
    /// `pivots.npy` (k row numbers). A file that was written before, by several processes, is `long`.
    pub(crate) fn new<T: Scalar>(
        dir: &Path,
        (form, dtype): (Form, DType),
        f: &Factors<T>,
        pivoted: Option<&Pivoted<T>>,
        mut long: Option<Staged>,
    ) -> tensorslim::Result<Self> {
        let mut files = Vec::new();
        for_each_array(form, f, pivoted, &mut |name, array| {
            let name = format!("{name}.npy");
            let file = match long.take_if(|long| long.name() == name) {
                Some(long) => long,
                None => Staged::new(&dir.join(name), |w| match array {
                    Array::Matrix(a) => npy::write_elements_to(w, dtype, &[a.nrows(), a.ncols()], a.as_slice()),
                    Array::Values(s) => npy::write_elements_to(w, dtype, &[s.len()], s),
                    Array::Indices(i) => npy::write_indices_to(w, i),
                })?,
            };
            files.push(file);
            Ok(())
        })?;
        Ok(Written(files))
    }

    /// Returns the length and checksum of each file.
    pub(crate) fn sums(&self) -> BTreeMap<String, Checksum> {
        self.0.iter().map(|file| (file.name().to_string(), file.sum())).collect()
    }

    /// Makes the files appear, the report last. Factors of another form, which the replaced report lists, are removed
    /// before it. Where the replaced report does not list all of the files, `begun` takes its place before the first
    /// appears: it lists those and the replaced ones, so that after a stop in between they are known to be of this
    /// program.
    pub(crate) fn publish(self, dir: &Path, begun: &str, report: &str) -> Result<(), Failure> {
        let (new, old) = (self.sums(), listed(dir)?);
        let is_known = new.keys().all(|name| old.contains(&name.as_str()));
        let begun = if is_known { None } else { Some(text(dir, REPORT, begun)?) };
        let report = text(dir, REPORT, report)?;
        writer::publish(begun.into_iter().collect())?;
        writer::publish(self.0)?;
        for path in old.into_iter().filter(|name| !new.contains_key(*name)).map(|name| dir.join(name)) {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    let path = path.display();
                    return Err(Failure(format!(
                        "{path}: is of the factors before and cannot be removed: {e}; remove it"
                    )));
                }
                _ => {}
            }
        }
        Ok(writer::publish(vec![report])?)
    }
}

/// Writes `texts`, names and contents, and then `report` as `name`.
pub(crate) fn write_texts(dir: &Path, texts: &[(&str, &str)], name: &str, report: &str) -> Result<(), Failure> {
    let stage = |&(name, text): &(&str, &str)| self::text(dir, name, text);
    let files = texts.iter().chain(&[(name, report)]).map(stage).collect::<Result<_, _>>()?;
    Ok(writer::publish(files)?)
}

fn text(dir: &Path, name: &str, text: &str) -> tensorslim::Result<Staged> {
    Staged::new(&dir.join(name), |w| std::io::Write::write_all(w, text.as_bytes()))
}

/// Refuses an element type whose range the singular values leave. Rounding alone loses at most 2^-9 of them (bf16); a
/// loss above 1 % means that they are outside of the range.
pub(crate) fn check_range(s: &[f64], dtype: DType) -> tensorslim::Result<()> {
    let loss = rounding_loss(s, dtype);
    if loss.is_nan() || loss > 0.01 {
        return Err(Error::Option {
            name: "dtype",
            value: Some(format!("{dtype} for singular values near {:e}", s[0])),
            want: "a wider type, in which they fit",
        });
    }
    Ok(())
}

/// Computes how much of `s` rounding to `dtype` loses: `‖s − round(s)‖ / ‖s‖`, infinite if a value overflows.
pub(crate) fn rounding_loss(s: &[f64], dtype: DType) -> f64 {
    let round = |x: f64| match dtype {
        DType::F16 => half::f16::from_f64(x).to_f64(),
        DType::BF16 => half::bf16::from_f64(x).to_f64(),
        DType::F32 => f64::from(x as f32),
        _ => x,
    };
    let top = s.first().copied().unwrap_or(0.0);
    if top == 0.0 {
        return 0.0;
    }
    let (mut lost, mut all) = (0.0, 0.0);
    for &x in s {
        lost += ((x - round(x)) / top).powi(2); // over the largest, so that squares stay in range
        all += (x / top).powi(2);
    }
    (lost / all).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that stop between two of them are listed, those of the form before too, and the next run replaces them all.
    #[test]
    fn a_stop_between_two_files_is_taken_up() {
        let dir = std::env::temp_dir().join(format!("tensorslim-output-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let all = |form| {
            let put = |name| text(&dir, name, name).unwrap();
            Written(names(form).into_iter().map(put).collect())
        };
        let report = |files: &[&str]| {
            let written = serde_json::json!({ "files": files });
            serde_json::json!({ "version": "0", "method": "full", "rank": 1, "written": written }).to_string()
        };
        let publish = |form, files| {
            let begun = report(&replaced(&dir, form).unwrap());
            Written::publish(files, &dir, &begun, &report(&names(form)))
        };
        let there = || {
            let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for (form, last) in [(Form::Svd, "vt.npy"), (Form::Split, "down.npy"), (Form::Pivot, "pivots.npy")] {
            let files = all(form);
            // A rename does not take the place of a directory.
            fs::create_dir(dir.join(last)).unwrap();
            assert!(publish(form, files).is_err());
            fs::remove_dir(dir.join(last)).unwrap();
            assert!(there().len() >= names(form).len(), "all but the last, and the report");
            check_dir(&dir, form, false).unwrap();
            publish(form, all(form)).unwrap();
            let mut want = [names(form), vec![REPORT]].concat();
            want.sort_unstable();
            assert_eq!(there(), want);
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Rounding to nearest loses at most half a unit in the last place of each value, so at most that much of the
    /// norm; outside the range of the type it loses (nearly) everything.
    #[test]
    fn loss_is_half_an_ulp_inside_the_range_and_total_outside() {
        let s = [3.3, 1.7, 0.9, 0.1];
        assert_eq!(rounding_loss(&s, DType::F64), 0.0);
        for (dtype, bits) in [(DType::F32, 24), (DType::BF16, 8), (DType::F16, 11)] {
            let loss = rounding_loss(&s, dtype);
            assert!(loss > 0.0 && loss <= 0.5f64.powi(bits), "{dtype}: {loss}");
        }
        assert_eq!(rounding_loss(&[1e30, 1.0], DType::F16), f64::INFINITY);
        assert_eq!(rounding_loss(&[1e-300, 1e-301], DType::F32), 1.0);
        assert_eq!(rounding_loss(&[0.0; 2], DType::F16), 0.0);
    }
}
