//! Unexpected files in a checkpoint folder, and files that change after a checkpoint was opened: each gives a typed
//! error or succeeds, and never raises a signal or blocks.

mod common;

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{TempFolder, safetensors};
use qwen_core::{Checkpoint, Error, HumanBytes, Result};

const CONFIG: &str = include_str!("data/config-0.5b-instruct.json");
const FILE: &str = "model.safetensors";

/// Three matrices of 64 x 16 in F32, 4,096 bytes each.
fn weights() -> Vec<u8> {
    let entries: Vec<String> = (0..3)
        .map(|i| {
            let (start, end) = (i * 4096, (i + 1) * 4096);
            format!(r#""t{i}": {{"dtype": "F32", "shape": [64, 16], "data_offsets": [{start}, {end}]}}"#)
        })
        .collect();
    safetensors(&format!("{{{}}}", entries.join(", ")), 3 * 4096)
}

fn folder() -> TempFolder {
    TempFolder::new().with("config.json", CONFIG).with(FILE, weights())
}

/// Read all tensors of an open checkpoint: whole, and row by row.
fn read_all(checkpoint: &Checkpoint) -> Vec<Result<Vec<u8>>> {
    let mut results = Vec::new();
    for name in ["t0", "t1", "t2"] {
        let whole = checkpoint.tensor(name).map(|tensor| tensor.data);
        let matrix = checkpoint.matrix(name, 64, 16).expect("the header is read");
        let mut buffer = Vec::new();
        let by_rows: Result<Vec<u8>> = (0..4).try_fold(Vec::new(), |mut bytes, quarter| {
            bytes.extend_from_slice(matrix.read(16 * quarter..16 * (quarter + 1), &mut buffer)?);
            Ok(bytes)
        });
        assert_eq!(whole.is_ok(), by_rows.is_ok(), "{name}");
        results.push(whole);
        results.push(by_rows);
    }
    results
}

#[test]
fn a_file_cut_short_names_the_tensor_and_the_missing_bytes() {
    let whole = weights();
    let data = whole.len() - 3 * 4096;
    for len in
        (0..whole.len()).step_by(509).chain([8, data - 1, data, data + 4095, data + 4096, data + 8192, whole.len() - 1])
    {
        let folder = folder();
        let path = folder.path().join(FILE);
        let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
        OpenOptions::new().write(true).open(&path).expect("the file").set_len(len as u64).expect("cut");
        for (index, result) in read_all(&checkpoint).into_iter().enumerate() {
            let tensor = index / 2;
            let (start, end) = (data + tensor * 4096, data + (tensor + 1) * 4096);
            match result {
                Ok(bytes) => {
                    assert!(end <= len, "t{tensor} of a file of {len} bytes");
                    assert_eq!(bytes, whole[start..end]);
                }
                Err(Error::Io { path: named, error }) => {
                    assert!(end > len, "t{tensor} of a file of {len} bytes: {error}");
                    assert_eq!(named, path);
                    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
                    let text = error.to_string();
                    let words = if index % 2 == 0 {
                        let [expected, found] = HumanBytes::compared(4096, len.saturating_sub(start) as u64);
                        format!("expected {expected} at offset {start} of the file, found {found}")
                    } else {
                        "expected 1.00 KiB".into()
                    };
                    assert!(text.contains(&format!("tensor `t{tensor}`")) && text.contains(&words), "{text}: {words}");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

#[test]
fn a_file_that_is_replaced_deleted_or_grown_is_read_to_its_end() {
    let (whole, folder) = (weights(), folder());
    let path = folder.path().join(FILE);
    let data = whole.len() - 3 * 4096;
    let check = |checkpoint: &Checkpoint| {
        for (index, result) in read_all(checkpoint).into_iter().enumerate() {
            let start = data + index / 2 * 4096;
            assert_eq!(result.expect("a tensor"), whole[start..start + 4096]);
        }
    };
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    fs::write(folder.path().join("shorter"), &whole[..data]).expect("a file");
    #[cfg(unix)]
    {
        fs::rename(folder.path().join("shorter"), &path).expect("renamed over");
        check(&checkpoint);
        fs::remove_file(&path).expect("deleted");
        check(&checkpoint);
    }
    drop(checkpoint);

    fs::write(&path, &whole).expect("a file");
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    OpenOptions::new().write(true).open(&path).expect("the file").set_len(1 << 20).expect("grown");
    check(&checkpoint);
    // A file that is opened in this state is refused: it is longer than its header says.
    assert!(Checkpoint::open(folder.path()).is_err());
}

/// Open on a separate thread: opening must not wait for a writer or read endlessly. A faulty generation_config.json is
/// only reported when its values are used.
fn open(folder: &Path) -> Error {
    let (sender, receiver) = mpsc::channel();
    let path = folder.to_path_buf();
    let open = move || Checkpoint::open(path)?.generation_config().check("temperature");
    thread::spawn(move || sender.send(open()));
    receiver.recv_timeout(Duration::from_secs(120)).expect("opening came to an end").expect_err("it is refused")
}

/// A folder whose file `name` is made by `make`.
fn with_special(name: &str, make: impl FnOnce(&Path)) -> (TempFolder, Error) {
    let index = r#"{"weight_map": {"t0": "one.safetensors"}}"#;
    let folder = match name {
        "one.safetensors" | "model.safetensors.index.json" => TempFolder::new()
            .with("config.json", CONFIG)
            .with("model.safetensors.index.json", index)
            .with("one.safetensors", weights()),
        _ => folder(),
    };
    let path = folder.path().join(name);
    fs::remove_file(&path).ok();
    make(&path);
    let error = open(folder.path());
    (folder, error)
}

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", FILE, "model.safetensors.index.json", "one.safetensors"];

#[test]
fn only_regular_files_are_opened() {
    let check = |name: &str, kind: &str, make: &dyn Fn(&Path)| {
        let (folder, error) = with_special(name, make);
        match error {
            Error::InvalidFile { path, reason } => {
                assert_eq!(path, folder.path().join(name), "{kind}");
                assert!(reason.contains("regular file"), "{kind} as {name}: {reason}");
            }
            error => panic!("{kind} as {name}: {error:?}"),
        }
    };
    for name in FILES {
        check(name, "a folder", &|path| fs::create_dir(path).expect("a folder"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::symlink;
            check(name, "a pipe", &|path| {
                let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
                assert!(made.success(), "a pipe");
            });
            for device in ["/dev/zero", "/dev/null"] {
                check(name, device, &|path| symlink(device, path).expect("a link"));
            }
            let (folder, error) = with_special(name, |path| symlink("nowhere", path).expect("a link"));
            let Error::InvalidFile { path, reason } = error else { panic!("{name}: {error:?}") };
            assert_eq!(path, folder.path().join(name));
            assert!(reason.contains("link to nowhere"), "{name}: {reason}");
        }
    }
}

#[test]
fn files_that_are_too_large_are_refused_with_their_size() {
    let sparse = |path: &Path, len: u64| fs::File::create(path).and_then(|file| file.set_len(len)).expect("a file");
    for (name, most) in
        [("config.json", 1 << 20), ("generation_config.json", 1 << 20), ("model.safetensors.index.json", 16 << 20)]
    {
        for len in [most + 1, 1 << 36] {
            let (_, error) = with_special(name, |path| sparse(path, len));
            let text = error.to_string();
            let [len, most] = HumanBytes::compared(len, most);
            assert!(text.contains(name) && text.contains(&format!("has {len}, at most {most}")), "{text}");
        }
    }
    // Weights may be large; a file of another kind is refused by its first bytes, whatever its size.
    for name in [FILE, "one.safetensors"] {
        let (_, error) = with_special(name, |path| sparse(path, 1 << 36));
        assert!(error.to_string().contains("malformed"), "{error}");
    }
}
