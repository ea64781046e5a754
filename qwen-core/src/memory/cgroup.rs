//! The control groups of a process, parsed from Linux's text files.

use std::path::{Path, PathBuf};

/// The two layouts of the memory controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// A group that the process is in, directly or through a parent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) version: Version,
    /// The path of its files, without the leading slash.
    pub(super) folder: PathBuf,
}

impl Version {
    /// The limit of a group and what is left of it, in bytes; `read` reads its files. `None` without a limit.
    pub(super) fn limit_and_left(self, read: impl Fn(&str) -> Option<String>) -> Option<(u64, u64)> {
        let figure = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let (limit, used, cached) = match self {
            Version::V1 => (
                figure("memory.limit_in_bytes"),
                figure("memory.usage_in_bytes"),
                ["total_inactive_file", "total_active_file"],
            ),
            // Beyond `high` a group is throttled heavily rather than killed: it counts as a limit.
            Version::V2 => (
                figure("memory.max").into_iter().chain(figure("memory.high")).min(),
                figure("memory.current"),
                ["inactive_file", "active_file"],
            ),
        };
        let (limit, used) = (limit?, used.unwrap_or(0));
        // File pages, such as those of the weights, are charged to the group that read them, and evicted under
        // pressure: counting them as used would refuse the second load of a model.
        let stat = read("memory.stat").unwrap_or_default();
        let cached: u64 = cached.iter().filter_map(|name| stat_of(&stat, name)).fold(0, u64::saturating_add);
        Some((limit, limit.saturating_sub(used.saturating_sub(cached))))
    }
}

/// The groups of `memberships` (`/proc/self/cgroup`) and their parents, as far as `mounts` (`/proc/self/mountinfo`) makes
/// them visible.
pub(super) fn groups(memberships: &str, mounts: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in mounts.lines() {
        let Some((version, root, mount_point)) = memory_mount(line) else { continue };
        let Some(path) = memberships.lines().find_map(|line| membership(line, version)) else { continue };
        // A container sees the host's path of its group but has only that group's folder mounted.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let mount_point = Path::new(mount_point.trim_start_matches('/'));
        for below in below.ancestors() {
            groups.push(Group { version, folder: mount_point.join(below) });
        }
    }
    groups
}

/// The layout, the root within the hierarchy and the mount point, if a line of mountinfo is a memory controller's.
/// Such lines read `41 33 0:36 <root> <mount point> <options> ... - <type> <source> <super options>`.
fn memory_mount(line: &str) -> Option<(Version, &str, &str)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let version = match (filesystem.next()?, filesystem.nth(1)) {
        ("cgroup2", _) => Version::V2,
        ("cgroup", Some(options)) if options.split(',').any(|option| option == "memory") => Version::V1,
        _ => return None,
    };
    let mut mount = mount.split(' ').skip(3);
    Some((version, mount.next()?, mount.next()?))
}

/// The path of a line of `/proc/self/cgroup`, `<id>:<controllers>:<path>`, if it is the one for the memory controller of
/// this layout.
fn membership(line: &str, version: Version) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = match version {
        Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
        Version::V2 => id == "0" && controllers.is_empty(),
    };
    fits.then_some(path)
}

fn stat_of(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(memberships: &str, mounts: &str) -> Vec<PathBuf> {
        groups(memberships, mounts).into_iter().map(|group| group.folder).collect()
    }

    #[test]
    fn parents_are_walked_up_to_the_mount() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let expected = ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup/"].map(PathBuf::from);
        assert_eq!(folders("0::/a/b\n", mounts), expected);
        assert_eq!(folders("0::/\n", mounts), [PathBuf::from("sys/fs/cgroup/")]);
    }

    #[test]
    fn a_path_outside_the_mount_leaves_the_mount() {
        let mounts = "30 23 0:26 /x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(folders("0::/../..\n", mounts), [PathBuf::from("sys/fs/cgroup/")]);
    }

    #[test]
    fn both_layouts_at_once() {
        let mounts = "\
            31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = groups("9:memory:/m\n3:cpu,cpuacct:/c\n0::/u\n", mounts);
        let versions: Vec<_> = found.iter().map(|group| group.version).collect();
        assert_eq!(versions, [Version::V2, Version::V2, Version::V1, Version::V1]);
    }

    #[test]
    fn damaged_texts_name_no_group() {
        for mounts in ["", "-", " - ", "1 2 - cgroup2", "30 23 0:26 /", "x - cgroup cgroup"] {
            assert_eq!(folders("0::/a\n4:memory:/a\n", mounts), Vec::<PathBuf>::new(), "{mounts:?}");
        }
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        for memberships in ["", "0", "0:", "1::/a", "0:memory:/a", ":::"] {
            assert_eq!(folders(memberships, mounts), Vec::<PathBuf>::new(), "{memberships:?}");
        }
    }
}
