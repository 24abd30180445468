//! `tensorslim info`: what this machine offers.

use serde::Serialize;
use tensorslim::simd;

use crate::args::InfoArgs;
use crate::report::{bytes, table};
use crate::{Failure, emit};

#[derive(Serialize)]
struct Info {
    version: &'static str,
    target: String,
    /// The instruction set that kernels use.
    isa: &'static str,
    isa_available: Vec<&'static str>,
    threads: usize,
    /// Of the machine, in bytes; null where the system does not say in `/proc/meminfo`.
    memory_total: Option<usize>,
    memory_available: Option<usize>,
    gpu: &'static str,
    mpi: &'static str,
}

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
        gpu: "none (built without cuda)",
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
    emit(&table(&[
        ("tensorslim", format!("{} ({})", info.version, info.target)),
        ("instructions", format!("{} (available: {})", info.isa, info.isa_available.join(", "))),
        ("threads", info.threads.to_string()),
        ("memory", memory),
        ("GPU", info.gpu.into()),
        ("MPI", info.mpi.into()),
    ]))
}

/// The bytes of a line like `MemTotal:       24684084 kB`.
fn kibibytes(meminfo: &str, name: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}
