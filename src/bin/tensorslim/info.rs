//! The command `tensorslim info`: shows what this machine offers.

use serde::Serialize;
use tensorslim::simd;

use crate::args::InfoArgs;
use crate::failure::{Failure, emit};
use crate::report::{bytes, table};

#[derive(Serialize)]
struct Info {
    version: &'static str,
    target: String,
    /// The instruction set that kernels use.
    isa: &'static str,
    isa_available: Vec<&'static str>,
    threads: usize,
    /// The memory of the machine in bytes; null where the system does not give it in `/proc/meminfo`.
    memory_total: Option<usize>,
    memory_available: Option<usize>,
    gpu: String,
    /// The kernel sources that this build has for GPUs.
    gpu_kernels: Vec<&'static str>,
    /// The architectures that the kernels for GPUs were compiled for.
    gpu_architectures: Vec<&'static str>,
    mpi: &'static str,
}

/// Runs `info`: prints the instruction sets, threads, devices and rates of this machine.
pub(crate) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        isa: simd::isa().name(),
        isa_available: simd::Isa::available().into_iter().map(simd::Isa::name).collect(),
        threads: rayon::current_num_threads(),
        memory_total: kibibytes(&memory, "MemTotal:"),
        memory_available: kibibytes(&memory, "MemAvailable:"),
        gpu: gpu(),
        gpu_kernels: kernels(),
        gpu_architectures: architectures(),
        mpi: "none",
    };
    if args.json {
        let text = serde_json::to_string(&info).map_err(|e| Failure(format!("the report does not serialize: {e}")))?;
        return emit(&(text + "\n"));
    }
    let memory = match (info.memory_total, info.memory_available) {
        (Some(all), Some(free)) => format!("{}, {} available", bytes(all), bytes(free)),
        (Some(all), None) => bytes(all),
        _ => "unknown".into(),
    };
    let listed = match info.gpu_kernels.as_slice() {
        [] => "none".into(),
        names => format!("{} for {} and later (PTX)", names.join(", "), info.gpu_architectures.join(", ")),
    };
    emit(&table(&[
        ("tensorslim", format!("{} ({})", info.version, info.target)),
        ("instructions", format!("{} (available: {})", info.isa, info.isa_available.join(", "))),
        ("threads", info.threads.to_string()),
        ("memory", memory),
        ("GPU", info.gpu),
        ("GPU kernels", listed),
        ("MPI", info.mpi.into()),
    ]))
}

/// Describes the first GPU, or says what is missing.
#[cfg(feature = "cuda")]
fn gpu() -> String {
    use tensorslim::Error;
    match tensorslim::cuda::Device::try_new(0) {
        Ok(d) => {
            let (major, minor) = d.capability();
            format!("{} (sm_{major}{minor}, {})", d.name(), bytes(d.total_memory()))
        }
        Err(Error::Device { detail, .. }) => format!("none ({detail})"),
        Err(e) => format!("none ({e})"),
    }
}

#[cfg(feature = "cuda")]
fn kernels() -> Vec<&'static str> {
    tensorslim::cuda::kernels().map(|(name, _)| name).collect()
}

#[cfg(feature = "cuda")]
fn architectures() -> Vec<&'static str> {
    tensorslim::cuda::architectures().to_vec()
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> String {
    "none (built without cuda)".into()
}

#[cfg(not(feature = "cuda"))]
fn kernels() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(not(feature = "cuda"))]
fn architectures() -> Vec<&'static str> {
    Vec::new()
}

/// Returns the bytes of a line like `MemTotal: 24684084 kB`.
fn kibibytes(meminfo: &str, name: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}
