//! Files that appear whole or not at all.
//!
//! Every file is written under a temporary name in its own directory and renamed when all of them are complete, the
//! report last and an older report removed first: a report in the directory (`report.json` of factors, `results.json` of a
//! bench) always belongs to the files beside it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use tensorslim::{DType, Error, Factors, Matrix, Pivoted, Scalar, Split, npy};

use crate::Failure;
use crate::args::Form;

/// The file that says that the factors are complete.
const REPORT: &str = "report.json";
/// The longest report that is read again, in bytes.
const MAX_REPORT: u64 = 1 << 20;

/// Makes `dir`, so that a directory that cannot be made is known before the work and not after it.
pub(crate) fn prepare(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|e| Failure(format!("{}: cannot make this directory: {e}", dir.display())))
}

/// The files of a form.
pub(crate) fn names(form: Form) -> Vec<&'static str> {
    match form {
        Form::Svd => vec!["u.npy", "s.npy", "vt.npy"],
        Form::Split => vec!["up.npy", "down.npy"],
        Form::Pivot => vec!["rows.npy", "coefficients.npy", "pivots.npy"],
    }
}

/// The files of factors in `dir`, of any form, that a report of `factor` there lists.
pub(crate) fn listed(dir: &Path) -> Vec<&'static str> {
    let path = dir.join(REPORT);
    // Opening a pipe would wait for its writer, and no report is that long.
    let is_short = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_REPORT);
    let report = is_short.then(|| fs::read(&path).ok()).flatten();
    let report = report.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    // Others write files of that name, too: this has what the reports of this program have.
    let ours = report.filter(|r| r["version"].is_string() && r["method"].is_string() && r["rank"].is_u64());
    let Some(files) = ours.as_ref().and_then(|r| r["written"]["files"].as_array()) else { return Vec::new() };
    let all = [Form::Svd, Form::Split, Form::Pivot].into_iter().flat_map(names);
    all.filter(|name| files.iter().any(|file| file == name)).collect()
}

/// Writes the factors as two layers: `up.npy` (m×k) and `down.npy` (k×n).
pub(crate) fn write_split<T: Scalar>(dir: &Path, dtype: DType, f: &Factors<T>, report: &str) -> Result<(), Failure> {
    let (up, down) = f.split(Split::Balanced);
    let files = vec![
        Staged::new(dir, "up.npy", |p| npy::write_matrix(p, &up, dtype))?,
        Staged::new(dir, "down.npy", |p| npy::write_matrix(p, &down, dtype))?,
    ];
    commit_factors(dir, files, report)
}

/// Writes `rows.npy` (k×n), `coefficients.npy` ((m−k)×k) and `pivots.npy` (k row numbers).
pub(crate) fn write_pivot<T: Scalar>(dir: &Path, dtype: DType, f: &Pivoted<T>, report: &str) -> Result<(), Failure> {
    let files = vec![
        Staged::new(dir, "rows.npy", |p| npy::write_matrix(p, f.rows(), dtype))?,
        Staged::new(dir, "coefficients.npy", |p| npy::write_matrix(p, f.coefficients(), dtype))?,
        Staged::new(dir, "pivots.npy", |p| npy::write_indices(p, f.pivots()))?,
    ];
    commit_factors(dir, files, report)
}

/// Writes one file that is whole at any time; its directory exists.
pub(crate) fn replace_bytes(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(Failure(format!("{}: no name of a file; give one", path.display())));
    };
    Staged::new(dir, name, |p| fs::write(p, contents).map_err(|e| Error::file(p, e)))?.commit()
}

/// Writes `u.npy` (m×k), `s.npy` (k), `vt.npy` (k×n), rounded to `dtype`, and `report.json`.
pub(crate) fn write<T: Scalar>(dir: &Path, dtype: DType, f: &Factors<T>, report: &str) -> Result<(), Failure> {
    let s = Matrix::from_vec(f.s().to_vec(), 1, f.rank())?.to_bytes(dtype);
    let files = vec![
        Staged::new(dir, "u.npy", |p| npy::write_matrix(p, f.u(), dtype))?,
        Staged::new(dir, "s.npy", |p| npy::write(p, dtype, &[f.rank()], &s))?,
        Staged::new(dir, "vt.npy", |p| npy::write_matrix(p, f.vt(), dtype))?,
    ];
    commit_factors(dir, files, report)
}

/// Writes `texts`, names and contents, and then `report` as `name`.
pub(crate) fn write_texts(dir: &Path, texts: &[(&str, &str)], name: &str, report: &str) -> Result<(), Failure> {
    let stage = |&(name, text): &(&str, &str)| Staged::text(dir, name, text);
    let files = texts.iter().map(stage).collect::<Result<_, _>>()?;
    commit(dir, files, name, report)
}

/// Writes one file that is whole at any time.
pub(crate) fn replace(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    Staged::text(dir, name, text)?.commit()
}

/// As [`commit`], for factors: those of another form, which the report that goes lists, go after it.
fn commit_factors(dir: &Path, files: Vec<Staged>, report: &str) -> Result<(), Failure> {
    let is_new = |name: &str| files.iter().any(|file| file.target.file_name().is_some_and(|of| of == name));
    let stale: Vec<PathBuf> = listed(dir).into_iter().filter(|name| !is_new(name)).map(|name| dir.join(name)).collect();
    commit(dir, files, REPORT, report)?;
    for path in stale {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let path = path.display();
                return Err(Failure(format!("{path}: is of the factors before and cannot be removed: {e}; remove it")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes away the old report, brings the files in and then the new one.
fn commit(dir: &Path, mut files: Vec<Staged>, name: &str, report: &str) -> Result<(), Failure> {
    files.push(Staged::text(dir, name, report)?);
    let old = dir.join(name);
    match fs::remove_file(&old) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure(format!("{}: cannot replace this file: {e}", old.display())));
        }
        _ => {}
    }
    files.into_iter().try_for_each(Staged::commit)
}

/// A complete file under a temporary name; removed unless committed.
struct Staged {
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn new(dir: &Path, name: &str, write: impl FnOnce(&Path) -> tensorslim::Result<()>) -> Result<Self, Failure> {
        let temporary = dir.join(format!(".{name}.{}", std::process::id()));
        let staged = Staged { temporary, target: dir.join(name) };
        write(&staged.temporary)?;
        Ok(staged)
    }

    fn text(dir: &Path, name: &str, text: &str) -> Result<Self, Failure> {
        Staged::new(dir, name, |p| fs::write(p, text).map_err(|e| Error::file(p, e)))
    }

    fn commit(self) -> Result<(), Failure> {
        fs::rename(&self.temporary, &self.target)
            .map_err(|e| Failure(format!("{}: cannot replace this file: {e}", self.target.display())))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a commit the temporary name is gone and this finds nothing.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Refuses an element type whose range the singular values leave. Rounding alone loses at most 2^-9 of them (bf16); above 1 % they are
/// outside.
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

/// How much of `s` rounding to `dtype` loses: `‖s − round(s)‖ / ‖s‖`, infinite if a value overflows.
pub(crate) fn rounding_loss(s: &[f64], dtype: DType) -> f64 {
    let round = |x: f64| match dtype {
        DType::F16 => half::f16::from_f64(x).to_f64(),
        DType::BF16 => half::bf16::from_f64(x).to_f64(),
        DType::F32 => f64::from(x as f32),
        DType::F64 => x,
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
    use super::rounding_loss;
    use tensorslim::DType;

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
