//! A folder that only this user may write to, and files in it that are read and replaced as a whole.
//!
//! On Unix the folder is opened once, and its files are opened relative to that handle: neither the folder nor a file
//! is reached through a symbolic link, and both have to belong to this user and be writable by nobody else. On other
//! systems the folder is in the user's profile, protected by its access control list; links are refused there too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use qwen_core::HumanBytes;

/// An open folder.
#[derive(Debug)]
pub(super) struct PrivateFolder {
    path: PathBuf,
    #[cfg(unix)]
    handle: std::os::fd::OwnedFd,
}

impl PrivateFolder {
    /// Open the folder at `path`; if it does not exist, create it with access for this user only.
    ///
    /// # Errors
    /// Why it is not used, as text.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        platform::open(path).map_err(|reason| format!("{}: {reason}", path.display()))
    }

    /// The bytes of the file `name`, or `None` where there is no such file.
    ///
    /// # Errors
    /// Why it is not read, as text: it is larger than `max_bytes`, another user could have written it, it is not a
    /// regular file, or the system refused.
    pub(super) fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String> {
        let explain = |reason: String| self.refusal(name, &reason);
        let file = match platform::open_file(self, name) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(None),
            Err(reason) => return Err(explain(reason)),
        };
        let size = file.metadata().map_err(|error| explain(error.to_string()))?.len();
        let mut bytes = Vec::new();
        if size <= max_bytes {
            // The file may grow meanwhile.
            file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| explain(error.to_string()))?;
        }
        match size.max(bytes.len() as u64) {
            size if size > max_bytes => {
                let [size, most] = HumanBytes::compared(size, max_bytes);
                Err(explain(format!("it has {size}, at most {most} are read")))
            }
            _ => Ok(Some(bytes)),
        }
    }

    /// Why the file `name` is not used, with its path.
    pub(super) fn refusal(&self, name: &str, reason: &str) -> String {
        format!("{}: {reason}", self.path.join(name).display())
    }

    /// Replace the file `name` by one with these bytes, which only this user may read: written to a temporary file and
    /// renamed, so that another process reads either the old file or the new one.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let beside = format!("{name}.{}.{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let written = match platform::create_file(self, &beside) {
            // Left behind by an earlier process with the same id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                platform::remove_file(self, &beside)?;
                platform::create_file(self, &beside)
            }
            created => created,
        }
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| platform::rename(self, &beside, name));
        if written.is_err() {
            let _ = platform::remove_file(self, &beside);
        }
        written
    }
}

#[cfg(unix)]
mod platform {
    use super::{File, Path, PrivateFolder, io};
    use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
    use std::os::unix::fs::DirBuilderExt;

    pub(super) fn open(path: &Path) -> Result<PrivateFolder, String> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| error.to_string())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| format!("it is not a folder, but perhaps a symbolic link ({error})"))?;
        check_owner(&rustix::fs::fstat(&handle).map_err(|error| error.to_string())?)?;
        Ok(PrivateFolder { path: path.into(), handle })
    }

    pub(super) fn open_file(folder: &PrivateFolder, name: &str) -> Result<Option<File>, String> {
        // NONBLOCK: opening a pipe would otherwise wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&folder.handle, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP) => return Err("it is a symbolic link".into()),
            Err(error) => return Err(error.to_string()),
        };
        let status = rustix::fs::fstat(&file).map_err(|error| error.to_string())?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err("it is not a regular file".into());
        }
        check_owner(&status)?;
        Ok(Some(file.into()))
    }

    /// Refuse files that another user owns or may write.
    fn check_owner(status: &Stat) -> Result<(), String> {
        let (owner, user) = (status.st_uid, rustix::process::geteuid().as_raw());
        let mode = status.st_mode & 0o777;
        match () {
            () if owner != user => Err(format!("it belongs to user {owner}, this process runs as user {user}")),
            () if mode & 0o022 != 0 => Err(format!("its mode is {mode:o}: others than its owner may write it")),
            () => Ok(()),
        }
    }

    pub(super) fn create_file(folder: &PrivateFolder, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&folder.handle, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    pub(super) fn rename(folder: &PrivateFolder, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&folder.handle, from, &folder.handle, to)?)
    }

    pub(super) fn remove_file(folder: &PrivateFolder, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&folder.handle, name, AtFlags::empty())?)
    }
}

#[cfg(not(unix))]
mod platform {
    use super::{File, Path, PrivateFolder, io};

    pub(super) fn open(path: &Path) -> Result<PrivateFolder, String> {
        std::fs::create_dir_all(path).map_err(|error| error.to_string())?;
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => Ok(PrivateFolder { path: path.into() }),
            Ok(_) => Err("it is not a folder, but perhaps a symbolic link".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn open_file(folder: &PrivateFolder, name: &str) -> Result<Option<File>, String> {
        let path = folder.path.join(name);
        match path.symlink_metadata() {
            Ok(found) if found.is_file() => File::open(path).map(Some).map_err(|error| error.to_string()),
            Ok(_) => Err("it is not a regular file".into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn create_file(folder: &PrivateFolder, name: &str) -> io::Result<File> {
        File::create_new(folder.path.join(name))
    }

    pub(super) fn rename(folder: &PrivateFolder, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(folder.path.join(from), folder.path.join(to))
    }

    pub(super) fn remove_file(folder: &PrivateFolder, name: &str) -> io::Result<()> {
        std::fs::remove_file(folder.path.join(name))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    /// A folder for one test, which is removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("qwen-private-folder-{}-{test}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_are_replaced_whole_and_belong_to_the_user_only() {
        let scratch = Scratch::new("replaced");
        let path = scratch.0.join("new/deep");
        let folder = PrivateFolder::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(folder.read("a", 100), Ok(None));
        for bytes in [&b"first"[..], b"a longer second one", b"x"] {
            folder.replace("a", bytes).unwrap();
            assert_eq!(folder.read("a", 100), Ok(Some(bytes.to_vec())));
        }
        assert_eq!(path.join("a").metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1, "a temporary file is left behind");
    }

    #[test]
    fn folders_that_others_may_write_and_links_are_refused() {
        let scratch = Scratch::new("folders");
        let path = scratch.0.join("folder");
        PrivateFolder::open(&path).unwrap();
        for mode in [0o770, 0o720, 0o702, 0o777, 0o1777] {
            set_mode(&path, mode);
            let refusal = PrivateFolder::open(&path).unwrap_err();
            assert!(refusal.contains("may write") && refusal.contains("folder"), "{mode:o}: {refusal}");
        }
        set_mode(&path, 0o755);
        PrivateFolder::open(&path).unwrap();
        let link = scratch.0.join("link");
        symlink(&path, &link).unwrap();
        assert!(PrivateFolder::open(&link).unwrap_err().contains("symbolic link"));
        let file = scratch.0.join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(PrivateFolder::open(&file).is_err());
    }

    #[test]
    fn files_that_others_may_write_links_and_pipes_are_refused_and_replaced() {
        let scratch = Scratch::new("files");
        let folder = PrivateFolder::open(&scratch.0).unwrap();
        let path = scratch.0.join("a");
        let target = scratch.0.join("target");
        let refused = |what: &str, reason: &str| {
            let refusal = folder.read("a", 100).unwrap_err();
            assert!(refusal.contains(reason) && refusal.contains("/a: "), "{what}: {refusal}");
            folder.replace("a", b"sound").unwrap();
            assert_eq!(folder.read("a", 100), Ok(Some(b"sound".to_vec())), "{what}");
        };
        for mode in [0o620, 0o602, 0o666] {
            std::fs::write(&path, b"foreign").unwrap();
            set_mode(&path, mode);
            refused("a file that others may write", "may write");
        }
        std::fs::write(&target, b"elsewhere").unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(&target, &path).unwrap();
        refused("a link", "symbolic link");
        assert_eq!(std::fs::read(&target).unwrap(), b"elsewhere");
        std::fs::remove_file(&path).unwrap();
        // A pipe without a writer: opening it must not wait.
        match std::process::Command::new("mkfifo").arg(&path).status() {
            Ok(status) if status.success() => refused("a pipe", "regular file"),
            _ => println!("skipped: `mkfifo` is not installed"),
        }
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir(&path).unwrap();
        assert!(folder.read("a", 100).unwrap_err().contains("regular file"));
        assert!(folder.replace("a", b"sound").is_err());
    }

    #[test]
    fn what_another_user_owns_is_refused() {
        let scratch = Scratch::new("owners");
        let folder = PrivateFolder::open(&scratch.0).unwrap();
        folder.replace("a", b"sound").unwrap();
        if chown(scratch.0.join("a"), Some(12345), None).is_err() {
            return println!("skipped: only root may give files away");
        }
        assert!(folder.read("a", 100).unwrap_err().contains("belongs to user 12345"));
        chown(&scratch.0, Some(12345), None).unwrap();
        assert!(PrivateFolder::open(&scratch.0).unwrap_err().contains("belongs to user 12345"));
    }

    #[test]
    fn files_beyond_the_limit_are_refused_by_their_size() {
        let scratch = Scratch::new("sizes");
        let folder = PrivateFolder::open(&scratch.0).unwrap();
        folder.replace("a", &[7; 100]).unwrap();
        assert_eq!(folder.read("a", 100), Ok(Some(vec![7; 100])));
        assert!(folder.read("a", 99).unwrap_err().contains("100 bytes, at most 99"));
        // A sparse file of a terabyte.
        File::create(scratch.0.join("huge")).unwrap().set_len(1 << 40).unwrap();
        assert!(folder.read("huge", 100).unwrap_err().contains("1.00 TiB"));
    }
}
