//! How much memory this process may use, and how much it uses.
//!
//! The minimum of what is free on the machine, in the process's control groups (such as a container's limit), and
//! within its resource limits. Read from `/proc` and `/sys`, so on Linux and Android only; elsewhere the answer is
//! `None` and the caller decides without it. Not here: what a model needs, and device memory, which backends report.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cgroup;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The memory of the machine as this process sees it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemoryInfo {
    /// Physical memory of the machine.
    pub total: u64,
    /// What this process may allocate now without being refused or killed. Cached file pages count as free, since the
    /// system evicts them; swap does not count.
    pub available: u64,
    /// The tightest limit of the process's control groups.
    pub cgroup_limit: Option<u64>,
}

/// What this process may use, if the system reports it.
///
/// ```
/// if let Some(memory) = qwen_core::memory::available_memory() {
///     assert!(memory.available <= memory.total);
/// }
/// ```
#[must_use]
pub fn available_memory() -> Option<MemoryInfo> {
    read_below(Path::new("/"))
}

/// Bytes of physical memory that this process holds now, mapped files included.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The most that [`resident_bytes`] has been.
#[must_use]
pub fn peak_resident_bytes() -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// [`available_memory`] with `proc` and `sys` below `root`, so that tests can simulate machines.
fn read_below(root: &Path) -> Option<MemoryInfo> {
    let read = |file: &str| fs::read_to_string(root.join(file)).ok();
    let meminfo = read("proc/meminfo")?;
    let total = kib_of(&meminfo, "MemTotal:")?;
    let mut available = kib_of(&meminfo, "MemAvailable:")?.min(total);

    let memberships = read("proc/self/cgroup").unwrap_or_default();
    let mounts = read("proc/self/mountinfo").unwrap_or_default();
    let mut cgroup_limit = None;
    for group in cgroup::groups(&memberships, &mounts) {
        let read = |file: &str| fs::read_to_string(root.join(&group.folder).join(file)).ok();
        let Some((limit, left)) = group.version.limit_and_left(read) else { continue };
        available = available.min(left);
        // In version 1, "unlimited" is a huge figure: a limit above the machine's memory is none.
        if limit < total {
            cgroup_limit = Some(cgroup_limit.map_or(limit, |tightest: u64| tightest.min(limit)));
        }
    }

    let limits = read("proc/self/limits").unwrap_or_default();
    let status = read("proc/self/status").unwrap_or_default();
    if let (Some(limit), Some(used)) = (address_space_limit(&limits), kib_of(&status, "VmSize:")) {
        available = available.min(limit.saturating_sub(used));
    }
    Some(MemoryInfo { total, available, cgroup_limit })
}

/// The figure behind `name` in a text of lines such as `MemTotal:  16384 kB`, in bytes.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = rest.split_ascii_whitespace();
    let kib: u64 = words.next()?.parse().ok()?;
    (words.next() == Some("kB")).then(|| kib.checked_mul(1024))?
}

/// The soft limit of the address space in `/proc/self/limits`; `None` if unlimited.
fn address_space_limit(limits: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    8192000 kB\n";
    const KIB: u64 = 1024;

    /// A simulated machine in a folder that is deleted with it.
    struct Machine(std::path::PathBuf);

    impl Machine {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("qwen-memory-{name}-{}", std::process::id()));
            for (file, text) in files {
                let file = root.join(file);
                fs::create_dir_all(file.parent().unwrap_or(&root)).and_then(|()| fs::write(&file, text)).ok();
            }
            Machine(root)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn figures_are_found_or_absent() {
        assert_eq!(kib_of(MEMINFO, "MemAvailable:"), Some(8192000 * KIB));
        assert_eq!(kib_of("VmRSS:\t    7 kB\n", "VmRSS:"), Some(7 * KIB));
        for text in
            ["", "VmRSS:", "VmRSS: x kB", "VmRSS: 7", "VmRSS: 7 MB", "VmRSS: 99999999999999999999 kB", "VmRSS: -1 kB"]
        {
            assert_eq!(kib_of(text, "VmRSS:"), None, "{text:?}");
        }
        assert_eq!(kib_of(&format!("VmRSS: {} kB", u64::MAX), "VmRSS:"), None);
        let limits =
            "Limit   Soft Limit  Hard Limit  Units\nMax address space         4096      unlimited      bytes\n";
        assert_eq!(address_space_limit(limits), Some(4096));
        assert_eq!(address_space_limit("Max address space   unlimited   unlimited   bytes"), None);
    }

    #[test]
    fn a_machine_without_limits_has_what_it_has() {
        let machine = Machine::new("plain", &[("proc/meminfo", MEMINFO)]);
        let expected = MemoryInfo { total: 16384000 * KIB, available: 8192000 * KIB, cgroup_limit: None };
        assert_eq!(read_below(&machine.0), Some(expected));
        assert_eq!(read_below(Path::new("/nonexistent")), None);
    }

    #[test]
    fn the_tightest_group_of_version_2_decides() {
        let machine = Machine::new(
            "v2",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/pod/app\n"),
                ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/pod/app/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/app/memory.current", "5000000\n"),
                ("sys/fs/cgroup/pod/memory.max", "2000000000\n"),
                ("sys/fs/cgroup/pod/memory.high", "1500000000\n"),
                ("sys/fs/cgroup/pod/memory.current", "1200000000\n"),
                ("sys/fs/cgroup/pod/memory.stat", "anon 5\nfile 9\ninactive_file 100000000\nactive_file 200000000\n"),
            ],
        );
        let found = read_below(&machine.0);
        assert_eq!(found.map(|memory| memory.cgroup_limit), Some(Some(1_500_000_000)));
        assert_eq!(found.map(|memory| memory.available), Some(600_000_000));
    }

    #[test]
    fn version_1_in_a_container_is_found_at_the_mount() {
        let machine = Machine::new(
            "v1",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/docker/ab\n"),
                (
                    "proc/self/mountinfo",
                    "41 33 0:36 /docker/ab /sys/fs/cgroup/memory ro,nosuid master:15 - cgroup cgroup rw,memory\n",
                ),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000000\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900000000\n"),
                (
                    "sys/fs/cgroup/memory/memory.stat",
                    "inactive_file 1\ntotal_inactive_file 50000000\ntotal_active_file 0\n",
                ),
            ],
        );
        let found = read_below(&machine.0);
        assert_eq!(found.map(|memory| memory.cgroup_limit), Some(Some(1_000_000_000)));
        assert_eq!(found.map(|memory| memory.available), Some(150_000_000));
    }

    #[test]
    fn an_unlimited_group_and_an_overdrawn_one() {
        let files = |limit, usage| {
            [
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "4:memory:/\n"),
                ("proc/self/mountinfo", "41 33 0:36 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", usage),
            ]
        };
        let machine = Machine::new("unlimited", &files("9223372036854771712\n", "5\n"));
        assert_eq!(read_below(&machine.0).map(|m| (m.available, m.cgroup_limit)), Some((8192000 * KIB, None)));
        let machine = Machine::new("overdrawn", &files("1000\n", "5000\n"));
        assert_eq!(read_below(&machine.0).map(|m| (m.available, m.cgroup_limit)), Some((0, Some(1000))));
    }

    #[test]
    fn the_address_space_limit_counts() {
        let machine = Machine::new(
            "rlimit",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/limits", "Max address space         3000000      4000000      bytes     \n"),
                ("proc/self/status", "VmSize:\t    1000 kB\n"),
            ],
        );
        assert_eq!(read_below(&machine.0).map(|memory| memory.available), Some(3_000_000 - 1000 * KIB));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_answers() {
        let memory = available_memory();
        assert!(memory.is_some_and(|memory| memory.available > 0 && memory.available <= memory.total), "{memory:?}");
        let (now, peak) = (resident_bytes(), peak_resident_bytes());
        assert!(now.is_some_and(|now| now > 0) && peak >= now, "{now:?} {peak:?}");
    }
}
