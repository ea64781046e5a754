//! What the operating system says about the machine's cores.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Physical cores that this process may use: two hyperthreads share the execution units that kernels keep busy.
///
/// Affinity masks and cgroup quotas are respected. If the topology is unknown, all logical cores count.
pub fn physical_cores() -> usize {
    // Miri cannot read files.
    if cfg!(miri) {
        return 1;
    }
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = HashSet::new();
    let mut logical = 0;
    for cpu in allowed_cpus() {
        let topology = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
        let read = |name: &str| fs::read_to_string(Path::new(&topology).join(name)).ok();
        if let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) {
            logical += 1;
            cores.insert((package, core));
        }
    }
    if cores.is_empty() || logical < allowed { allowed } else { allowed.min(cores.len()) }
}

/// The logical cores of the affinity mask, by number.
fn allowed_cpus() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}
