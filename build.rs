//! Compiles `kernels/*.cu` for the feature `cuda`: one fat binary for each source file, embedded in the library.
//!
//! nvcc is taken from `NVCC`, `CUDA_HOME/bin`, `CUDA_PATH/bin`, `PATH`, or `/usr/local/cuda/bin`, in this order. Without
//! it the build succeeds with a warning and an empty table, and opening a device says so.
//!
//! `TENSORSLIM_CUDA_ARCHS` (default `80,90,100`) names the architectures; the lowest is added as PTX, for cards that came
//! later. A kernel that spills registers, or uses local memory at all, fails the build.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "TENSORSLIM_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = nvcc();
    let architectures = if nvcc.is_some() { architectures() } else { Vec::new() };
    let table = match nvcc {
        Some(nvcc) => compile(&nvcc, &architectures, &out),
        None => {
            println!("cargo:warning=no nvcc found (NVCC, CUDA_HOME, CUDA_PATH, PATH): built without CUDA kernels");
            "&[]".to_owned()
        }
    };
    let architectures = architectures.iter().map(|a| format!("\"sm_{a}\", ")).collect::<String>();
    let text = format!(
        "/// Each kernel source and its fat binary.\n\
         pub(super) const IMAGES: &[(&str, &[u8])] = {table};\n\
         /// What they were compiled for, the lowest also as PTX.\n\
         pub(super) const ARCHITECTURES: &[&str] = &[{architectures}];\n"
    );
    fs::write(out.join("kernels.rs"), text).expect("OUT_DIR can be written");
}

fn architectures() -> Vec<String> {
    let list = env::var("TENSORSLIM_CUDA_ARCHS").unwrap_or_else(|_| "80,90,100".to_owned());
    let mut list: Vec<String> =
        list.split(',').map(|a| a.trim().trim_start_matches("sm_").to_owned()).filter(|a| !a.is_empty()).collect();
    // 90a is a version of 90.
    list.sort_by_key(|a| a.trim_end_matches(char::is_alphabetic).parse::<u32>().unwrap_or(u32::MAX));
    assert!(!list.is_empty(), "TENSORSLIM_CUDA_ARCHS names no architecture; give for example 80,90");
    list
}

fn nvcc() -> Option<PathBuf> {
    let file = |path: PathBuf| path.is_file().then_some(path);
    let below = |name: &str| env::var_os(name).and_then(|dir| file(Path::new(&dir).join("bin/nvcc")));
    let on_path = || env::split_paths(&env::var_os("PATH")?).find_map(|dir| file(dir.join("nvcc")));
    env::var_os("NVCC")
        .and_then(|path| file(path.into()))
        .or_else(|| below("CUDA_HOME"))
        .or_else(|| below("CUDA_PATH"))
        .or_else(on_path)
        .or_else(|| file("/usr/local/cuda/bin/nvcc".into()))
}

/// Compiles all sources, as many at once as cargo grants, and returns the table as Rust source.
fn compile(nvcc: &Path, architectures: &[String], out: &Path) -> String {
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("kernels/ is part of the package")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut table = "&[".to_owned();
    for group in sources.chunks(jobs) {
        let running: Vec<_> = group
            .iter()
            .map(|source| {
                let stem = source.file_stem().and_then(|s| s.to_str()).expect("kernel files have plain names");
                let image = out.join(format!("{stem}.fatbin"));
                let mut command = Command::new(nvcc);
                command.args(["-std=c++17", "-O3", "-fatbin", "-Werror", "all-warnings"]);
                command.args(["-Xptxas", "-warn-spills,-warn-lmem-usage"]);
                for a in architectures {
                    command.arg(format!("-gencode=arch=compute_{a},code=sm_{a}"));
                }
                let lowest = &architectures[0];
                command.arg(format!("-gencode=arch=compute_{lowest},code=compute_{lowest}"));
                command.arg("-o").arg(&image).arg(source);
                let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
                (stem, image, child)
            })
            .collect();
        for (stem, image, mut child) in running {
            let status = child.wait().expect("nvcc was started");
            assert!(status.success(), "nvcc failed on kernels/{stem}.cu: {status}");
            let _ = write!(table, "({stem:?}, include_bytes!({image:?})), ");
        }
    }
    table + "]"
}
