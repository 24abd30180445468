//! Asks the system about this process and what it grants it: resident memory, addresses, an allocator that gives memory
//! back.

use std::collections::BTreeMap;
use std::fs;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{env, process::Command};

/// The environment variables by which the system's allocator (glibc) is set: from which size on it gives memory back at
/// once, and how many heaps it keeps, each of which takes 64 MiB of addresses.
const GIVE_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "262144");
const ONE_HEAP: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// The bytes of addresses of a thread's stack.
pub(crate) const STACK: usize = (2 << 20) + (64 << 10);

/// The bytes of addresses that are left for what nobody counts: the thread of signals, small heaps, directories that
/// are read.
pub(crate) const UNCOUNTED: usize = 12 << 20;

/// Starts the program anew, in the same process, with an allocator that gives memory back when it is freed, where
/// memory is limited. By itself glibc raises the size from which it does that up to 32 MiB, and keeps up to 64 MiB of
/// what is smaller: enough to break the limit where moments with other sizes follow each other. It reads the setting
/// before the program starts, and takes it later from unsafe code alone. Without the setting the limit is kept less
/// well.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_memory_back(is_limited: bool) {
    use std::os::unix::process::CommandExt;

    let addresses = address_space().is_some();
    let wanted = [(is_limited || addresses, GIVE_BACK), (addresses, ONE_HEAP)];
    let missing = |&(is_wanted, (name, _)): &(bool, (&str, &str))| is_wanted && env::var_os(name).is_none();
    let settings: Vec<(&str, &str)> = wanted.into_iter().filter(missing).map(|(_, setting)| setting).collect();
    if settings.is_empty() {
        return;
    }
    let mut arguments = env::args_os();
    if let (Ok(program), Some(called)) = (env::current_exe(), arguments.next()) {
        // It returns only if it has failed.
        let _ = Command::new(program).arg0(called).args(arguments).envs(settings).exec();
    }
}

/// Does nothing, because allocators of other systems are not set by the environment.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_memory_back(_: bool) {}

/// Returns the most addresses that the process may use (`ulimit -v`), in bytes, if the system sets a limit and gives
/// it.
pub(crate) fn address_space() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the addresses in use, in bytes.
pub(crate) fn addresses() -> usize {
    status("VmSize:").unwrap_or(0)
}

/// Estimates the bytes of addresses that faer's GEMM takes on each thread that multiplies: two buffers as large as the
/// last-level caches of the machine together. They fill as far as they are used, and one that cannot be allocated ends
/// the program.
pub(crate) fn buffers() -> usize {
    let cpus = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let caches = cpus.filter_map(|cpu| {
        let cache = cpu.path().join("cache/index3");
        let text = |name: &str| fs::read_to_string(cache.join(name)).ok();
        let kib: usize = text("size")?.trim().strip_suffix('K')?.parse().ok()?;
        Some((text("shared_cpu_list")?, kib << 10))
    });
    let all: BTreeMap<String, usize> = caches.collect();
    2 * if all.is_empty() { 64 << 20 } else { all.values().sum() }
}

/// Returns the threads that a limited address space has room for, of those there would be by default; `None` without a
/// limit.
pub(crate) fn threads() -> Option<usize> {
    // The other half is for data, and for the workers of a batch.
    let room = address_space()?.saturating_sub(addresses()) / 2;
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    Some((room / (STACK + buffers())).clamp(1, most))
}

/// Returns the most memory that this process had resident so far, where the system gives it.
pub(crate) fn peak_rss() -> Option<usize> {
    status("VmHWM:")
}

/// Returns the bytes that the system gives for this process under a name.
pub(crate) fn status(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}
