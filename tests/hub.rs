//! Checkpoints by name, against a local server: what is downloaded, what is kept, and what each fault of a hub or of a
//! network leads to. No test touches another network.
#![cfg(feature = "hub")]

mod common;
mod hub_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{Folder, demo, options};
use hub_server::{Asked, COMMIT, Files, Reply, Server, sha256};
use qwen::hub::{Error, Hub};
use qwen::{EngineOptions, ErrorKind, LoadCanceller, LoadStage};

const NAME: &str = "org/model";
const WEIGHTS: &str = "model.safetensors";

/// Small files, and weights of several pieces. Their contents do not matter where nothing is loaded.
fn files() -> Files {
    let weights: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let readme = b"not needed".as_slice();
    Files::of(&[("README.md", readme), ("config.json", b"{}"), ("tokenizer.json", b"[]"), (WEIGHTS, &weights)])
}

/// A hub that never waits, whatever the environment of the tests says.
fn hub_at(url: &str, cache: &Folder) -> Hub {
    Hub::new().endpoint(url).cache_dir(&cache.0).offline(false).token("").max_wait(Duration::ZERO)
}

fn hub_error(result: qwen::Result<PathBuf>) -> Error {
    match result.expect_err("it fails") {
        qwen::Error::Hub(error) => error,
        other => panic!("not an error of the hub: {other}"),
    }
}

/// All files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

fn blobs(cache: &Folder) -> PathBuf {
    cache.0.join("models--org--model/blobs")
}

fn assert_same(path: &Path, files: &Files) {
    for (name, bytes) in files.0.iter().filter(|(name, _)| *name != "README.md") {
        assert!(fs::read(path.join(name)).expect(name) == *bytes, "{name}");
    }
}

#[test]
fn a_checkpoint_by_its_name() {
    let mut files = Files::default();
    for entry in demo().read_dir().expect("the demo checkpoint").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        files.0.insert(name, fs::read(entry.path()).expect("its bytes"));
    }
    let total: usize = files.0.iter().filter(|(name, _)| *name != "README.md").map(|(_, bytes)| bytes.len()).sum();
    let cache = Folder::new("hub-whole");
    let server = Server::start(move |asked| files.reply(asked));
    let seen: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
    let report = Arc::clone(&seen);
    let with = |hub: Hub| {
        let report = Arc::clone(&report);
        options().context(128).hub(hub).progress(move |progress| {
            if progress.stage == LoadStage::Downloading {
                report.lock().expect("the progress").push((progress.done, progress.total));
            }
        })
    };
    let plan = qwen::plan(NAME, &with(hub_at(&server.url(), &cache))).expect("a plan");
    let seen = std::mem::take(&mut *seen.lock().expect("the progress"));
    assert!(seen.is_sorted() && seen.iter().all(|(_, of)| *of == total as u64), "{seen:?}");
    assert_eq!(seen.last(), Some(&(total as u64, total as u64)));

    // What is there is not asked for again: one request finds that the revision has not moved.
    let before = server.asked().len();
    let engine = with(hub_at(&server.url(), &cache)).load(NAME).expect("an engine");
    assert_eq!(server.asked().len(), before + 1);
    assert_eq!(engine.plan().weight_bytes, plan.weight_bytes);
    let answer = engine.chat().send("What is 3 + 4?").expect("a reply").text().expect("an answer");
    assert!(answer.contains('7'), "{answer}");

    // And offline nothing is asked at all.
    drop(with(hub_at(&server.url(), &cache).offline(true)).load(NAME).expect("an engine"));
    assert_eq!(server.asked().len(), before + 1);
    assert_eq!(server.gets("README.md"), 0, "only what is needed");
}

#[test]
fn the_layout_is_that_of_python() {
    let (files, cache) = (files(), Folder::new("hub-layout"));
    let served = files.clone();
    let server = Server::start(move |asked| served.reply(asked));
    let path = hub_at(&server.url(), &cache).download(NAME).expect("a folder");
    let repository = cache.0.join("models--org--model");
    assert_eq!(path, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).expect("a revision"), COMMIT);
    let etag = sha256(&files.0[WEIGHTS]);
    assert!(repository.join("blobs").join(&etag).is_file());
    #[cfg(unix)]
    assert_eq!(fs::read_link(path.join(WEIGHTS)).expect("a link"), Path::new("../../blobs").join(&etag));
    assert_same(&path, &files);
    assert_eq!(below(&path).len(), 3);
    assert!(!below(&repository).iter().any(|path| path.to_string_lossy().contains("incomplete")));
    // A commit is a revision, too.
    let pinned = hub_at(&server.url(), &cache).offline(true).download(&format!("{NAME}@{COMMIT}"));
    assert_eq!(pinned.expect("a folder"), path);
}

#[test]
fn a_folder_that_exists_wins_over_a_name() {
    let cache = Folder::new("hub-path");
    let hub = hub_at("http://127.0.0.1:9", &cache);
    let plan = |path: &str| qwen::plan(path, &EngineOptions::new().context(64).hub(hub.clone()));
    // Tests run in the folder of their package.
    assert!(plan("examples/demo-model").is_ok());
    assert_eq!(plan("tests/data").expect_err("no checkpoint").kind(), ErrorKind::InvalidModel);
    assert!(matches!(plan("examples/absent"), Err(qwen::Error::Hub(Error::Network { .. }))));
    assert_eq!(plan("examples/absent.gguf").expect_err("no file").kind(), ErrorKind::NotFound);
    assert_eq!(below(&cache.0).len(), 0);
}

#[test]
fn a_quantization_of_a_gguf_repository() {
    let parts = ["q8_0/m-q8_0-00001-of-00002.gguf", "q8_0/m-q8_0-00002-of-00002.gguf"];
    let files =
        Files::of(&[("m-q4_k_m.gguf", b"four"), (parts[0], b"one"), (parts[1], b"two"), ("config.json", b"{}")]);
    let cache = Folder::new("hub-gguf");
    let server = Server::start(move |asked| files.reply(asked));
    let hub = hub_at(&server.url(), &cache);
    let path = hub.download("org/model:Q4_K_M").expect("a file");
    assert_eq!(fs::read(&path).expect("its bytes"), b"four");
    assert!(path.ends_with("m-q4_k_m.gguf"));
    let path = hub.download("org/model:q8_0").expect("the first part");
    assert!(path.ends_with(parts[0]));
    assert_eq!(fs::read(path.with_file_name("m-q8_0-00002-of-00002.gguf")).expect("the second part"), b"two");
    assert_eq!(server.gets("config.json"), 0);
    let text = hub_error(hub.download("org/model:q2_k")).to_string();
    assert!(text.contains("m-q4_k_m") && text.contains("m-q8_0"), "{text}");
    // Offline the same choice is made from the cache.
    let offline = hub.offline(true);
    assert_eq!(offline.download("org/model:q8_0").expect("the first part"), path);
    assert!(matches!(hub_error(offline.download("org/model:q2_k")), Error::NotCached { .. }));
}

#[test]
fn weights_in_several_files() {
    let index = |second: &str| format!(r#"{{"weight_map":{{"x":"a.safetensors","y":"{second}"}}}}"#);
    let files = |index: &str| {
        let [a, b] = [b"a".as_slice(), b"b"];
        let index = ("model.safetensors.index.json", index.as_bytes());
        Files::of(&[("config.json", b"{}"), index, ("a.safetensors", a), ("b.safetensors", b), ("c.safetensors", b)])
    };
    let (whole, cache) = (files(&index("b.safetensors")), Folder::new("hub-index"));
    let server = Server::start(move |asked| whole.reply(asked));
    let path = hub_at(&server.url(), &cache).download(NAME).expect("a folder");
    assert_eq!(fs::read(path.join("b.safetensors")).expect("a shard"), b"b");
    assert_eq!(server.gets("c.safetensors"), 0);

    let (evil, cache) = (files(&index("../../../../evil.safetensors")), Folder::new("hub-index-evil"));
    let server = Server::start(move |asked| evil.reply(asked));
    assert!(matches!(hub_error(hub_at(&server.url(), &cache).download(NAME)), Error::NoCheckpoint { .. }));
    assert!(matches!(hub_error(hub_at(&server.url(), &cache).offline(true).download(NAME)), Error::NotCached { .. }));
}

#[test]
fn names_do_not_escape_from_the_cache() {
    let cache = Folder::new("hub-escape");
    let hub = hub_at("http://127.0.0.1:9", &cache);
    for name in ["../x", "x/..", "a/b@../../x", "a/b:../x", "/etc/passwd", "a/b/c", "a\\b/c", "https://h/a"] {
        let error = hub.download(name).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}: {error}");
    }
    // Nor does what a hub answers.
    let inside = cache.0.join("cache");
    let evil = |listing: &'static str, etag: &'static str, commit: &'static str| {
        let server = Server::start(move |asked| match asked.path.starts_with("/api/") {
            true => Reply::status(200).body(format!(r#"{{"sha":"{commit}","siblings":{listing}}}"#)),
            false => Reply::status(200).header("etag", etag).body("evil"),
        });
        hub_error(hub_at(&server.url(), &cache).cache_dir(&inside).download(NAME))
    };
    let escaping =
        r#"[{"rfilename":"../../../../x.gguf"},{"rfilename":"/tmp/x.gguf"},{"rfilename":"a\\..\\..\\x.gguf"}]"#;
    assert!(matches!(evil(escaping, "abc", COMMIT), Error::NoCheckpoint { .. }));
    let plain = r#"[{"rfilename":"x.gguf"}]"#;
    assert!(matches!(evil(plain, "../../../x", COMMIT), Error::Protocol { .. }));
    assert!(matches!(evil(plain, "abc", "../../../x"), Error::Protocol { .. }));
    assert!(matches!(evil("7", "abc", COMMIT), Error::Protocol { .. }));
    assert_eq!(below(&cache.0).len(), 0);
}

/// A server whose answers to requests for the weights are changed by `change`, which is told how many there were before.
fn faulty(files: &Files, change: impl Fn(usize, &Asked, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let (files, count) = (files.clone(), AtomicUsize::new(0));
    Server::start(move |asked| {
        let reply = files.reply(asked);
        if !asked.gets(WEIGHTS) {
            return reply;
        }
        change(count.fetch_add(1, Ordering::SeqCst), asked, reply)
    })
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let (files, cache) = (files(), Folder::new("hub-cut"));
    let server = faulty(&files, |count, _, reply| match count {
        0 => reply.cut(1_000_000),
        1 => reply.cut(0),
        2 => reply.cut(1_500_000),
        _ => reply,
    });
    let path = hub_at(&server.url(), &cache).download(NAME).expect("a folder");
    assert_same(&path, &files);
    let from: Vec<_> = server.asked().iter().filter(|asked| asked.gets(WEIGHTS)).map(Asked::from).collect();
    assert_eq!(from, [None, Some(1_000_000), Some(1_000_000), Some(2_500_000)]);
}

#[test]
fn what_arrived_before_a_failure_is_kept() {
    let (files, cache) = (files(), Folder::new("hub-again"));
    let server = faulty(&files, |count, _, reply| if count == 0 { reply.cut(1_000_000) } else { reply.cut(0) });
    let error = hub_error(hub_at(&server.url(), &cache).download(NAME));
    assert!(matches!(&error, Error::Network { reason, .. } if reason.contains("1000000 of 3000000")), "{error}");
    assert_eq!(server.gets(WEIGHTS), 5, "it gives up when nothing comes any more");
    let error = hub_error(hub_at(&server.url(), &cache).offline(true).download(NAME));
    assert!(matches!(error, Error::NotCached { .. }), "{error}");
    let server = faulty(&files, |_, _, reply| reply);
    let path = hub_at(&server.url(), &cache).download(NAME).expect("a folder");
    assert_same(&path, &files);
    assert_eq!(server.asked().iter().find(|asked| asked.gets(WEIGHTS)).and_then(Asked::from), Some(1_000_000));
}

#[test]
fn servers_with_other_ideas_of_ranges() {
    let files = files();
    let cases: [fn(&Files) -> Reply; 3] = [
        // It ignores them.
        |files| Reply::status(200).body(files.0[WEIGHTS].as_slice()),
        // It finds that there is nothing left.
        |_| Reply::status(416),
        // It sends another part.
        |_| Reply::status(206).header("content-range", "bytes 7-8/3000000").body("xy"),
    ];
    for (i, ranged) in cases.into_iter().enumerate() {
        let cache = Folder::new(&format!("hub-ranges-{i}"));
        let served = files.clone();
        let server = faulty(&files, move |count, asked, reply| match asked.from() {
            None if count == 0 => reply.cut(1_000_000),
            None => reply,
            Some(_) => ranged(&served),
        });
        let path = hub_at(&server.url(), &cache).download(NAME).expect("a folder");
        assert_same(&path, &files);
    }
}

#[test]
fn what_an_earlier_process_left_may_be_damaged() {
    let files = files();
    let etag = sha256(&files.0[WEIGHTS]);
    let longer = vec![1; 3_000_001];
    for (i, left) in [&b"wrong bytes"[..], &longer, &longer[1..], b""].into_iter().enumerate() {
        let cache = Folder::new(&format!("hub-left-{i}"));
        fs::create_dir_all(blobs(&cache)).expect("a folder");
        fs::write(blobs(&cache).join(format!("{etag}.incomplete")), left).expect("a file");
        let server = faulty(&files, |_, _, reply| reply);
        assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
    }
}

#[test]
fn contents_that_are_not_what_was_announced() {
    let files = files();
    let wrong: [fn(Reply) -> Reply; 4] = [
        |mut reply| {
            reply.body[1_234_567] ^= 1;
            reply
        },
        |reply| reply.body(vec![0; 3_000_001]),
        |reply| reply.body(vec![0; 2_999_999]),
        |reply| reply.body("<html>please log in</html>"),
    ];
    for (i, wrong) in wrong.into_iter().enumerate() {
        let cache = Folder::new(&format!("hub-damaged-{i}"));
        let server = faulty(&files, move |_, _, reply| wrong(reply));
        let error = hub_error(hub_at(&server.url(), &cache).download(NAME));
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert_eq!(qwen::Error::from(error).kind(), ErrorKind::InvalidModel);
        // Neither the name nor the bytes are kept.
        let kept: u64 = below(&cache.0).iter().map(|path| path.metadata().map_or(0, |metadata| metadata.len())).sum();
        assert!(kept < 100, "{kept}");
        let server = faulty(&files, |_, _, reply| reply);
        assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
    }
}

#[test]
fn small_files_are_checked_by_the_checksum_of_git() {
    for (contents, is_right) in [("{}", true), ("[]", false)] {
        let (files, cache) = (files(), Folder::new(&format!("hub-git-{is_right}")));
        let server = Server::start(move |asked| match asked.path.ends_with("config.json") {
            // `git hash-object` of a file with `{}`.
            true => Reply::status(200).header("etag", "\"9e26dfeeb6e641a33dae4961196235bdb965b21b\"").body(contents),
            false => files.reply(asked),
        });
        let result = hub_at(&server.url(), &cache).download(NAME);
        match is_right {
            true => drop(result.expect("a folder")),
            false => assert!(matches!(hub_error(result), Error::Damaged { .. })),
        }
    }
}

#[test]
fn statuses_that_refuse() {
    let error_of = |tries: usize, reply: Reply| {
        let (cache, status) = (Folder::new(&format!("hub-status-{}", reply.status)), reply.status);
        let server = Server::start(move |_| reply.clone());
        let error = hub_error(hub_at(&server.url(), &cache).download("org/model@dev"));
        assert_eq!(server.asked().len(), tries, "{status}");
        assert_eq!(below(&cache.0).len(), 0);
        error
    };
    assert!(matches!(error_of(1, Reply::status(401)), Error::Unauthorized { .. }));
    assert!(matches!(error_of(1, Reply::status(403)), Error::Forbidden { .. }));
    let gated = Reply::status(401).header("x-error-code", "GatedRepo");
    assert!(matches!(error_of(1, gated), Error::Forbidden { page, .. } if page.ends_with("/org/model")));
    let not_found = error_of(1, Reply::status(404).header("x-error-code", "RevisionNotFound"));
    assert!(not_found.to_string().starts_with("org/model@dev: "), "{not_found}");
    assert!(matches!(error_of(1, Reply::status(404)), Error::NotFound { .. }));
    assert!(matches!(error_of(1, Reply::status(418)), Error::Protocol { .. }));
    assert!(matches!(error_of(4, Reply::status(503)), Error::Network { .. }));
    // The hub asks for more patience than there is.
    let limited = error_of(1, Reply::status(429).header("retry-after", 70));
    assert!(matches!(limited, Error::RateLimited { retry_after: Some(time), .. } if time.as_secs() == 70));
    assert!(limited.to_string().contains("in 70 s"), "{limited}");
    assert!(matches!(error_of(4, Reply::status(429)), Error::RateLimited { retry_after: None, .. }));
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (files, cache) = (files(), Folder::new("hub-busy"));
    let count = AtomicUsize::new(0);
    let served = files.clone();
    let server = Server::start(move |asked| match count.fetch_add(1, Ordering::SeqCst) {
        0 | 2 => Reply::status(429).header("retry-after", 0),
        3 | 5 => Reply::status(503),
        _ => served.reply(asked),
    });
    assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (files, cache) = (files(), Folder::new("hub-token"));
    let served = files.clone();
    let contents = Server::start(move |asked| served.reply(asked));
    let (served, elsewhere) = (files.clone(), contents.url());
    let server = Server::start(move |asked| {
        if !asked.path.ends_with(WEIGHTS) {
            // A renamed repository, on the same host.
            return match asked.path.replace("/org/model/", "/org/renamed/") {
                renamed if renamed != asked.path => Reply::status(307).header("location", renamed),
                _ => served.reply(asked),
            };
        }
        // The length of the redirect's own text is not that of the file.
        let weights = &served.0[WEIGHTS];
        Reply::status(302)
            .header("location", format!("{elsewhere}{}", asked.path))
            .header("x-linked-etag", format!("\"{}\"", sha256(weights)))
            .header("x-linked-size", weights.len())
            .body("Found")
    });
    let hub = hub_at(&server.url(), &cache).token("hf_secret");
    assert!(!format!("{hub:?}").contains("hf_secret"));
    assert_same(&hub.download(NAME).expect("a folder"), &files);
    assert!(server.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer hf_secret")));
    assert_eq!(contents.asked().len(), 1, "the size is known before the contents are asked for");
    assert_eq!(contents.asked()[0].header("authorization"), None);
}

#[test]
fn redirects_that_lead_nowhere() {
    for to in ["file:///etc/passwd", "/again", "", "ftp://h/x"] {
        let cache = Folder::new(&format!("hub-redirect-{}", to.len()));
        let server = Server::start(move |_| Reply::status(302).header("location", to));
        let error = hub_error(hub_at(&server.url(), &cache).download(NAME));
        assert!(matches!(error, Error::Protocol { .. }), "{to}: {error}");
    }
}

#[test]
fn without_a_network_the_cache_is_used() {
    let (files, cache) = (files(), Folder::new("hub-offline"));
    let served = files.clone();
    let server = Server::start(move |asked| served.reply(asked));
    let error = hub_error(hub_at(&server.url(), &cache).offline(true).download(NAME));
    assert!(matches!(&error, Error::NotCached { .. }) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(server.asked().len(), 0);
    let path = hub_at(&server.url(), &cache).download(NAME).expect("a folder");
    // Nothing listens there.
    let unreachable = format!("http://127.0.0.1:{}", common::free_port());
    assert_eq!(hub_at(&unreachable, &cache).download(NAME).expect("the cache"), path);
    assert!(matches!(hub_error(hub_at(&unreachable, &cache).download("org/other")), Error::Network { .. }));
    // A snapshot that is not whole is not used.
    fs::remove_file(blobs(&cache).join(sha256(&files.0[WEIGHTS]))).expect("it was there");
    assert!(matches!(hub_error(hub_at(&unreachable, &cache).download(NAME)), Error::Network { .. }));
    assert!(matches!(hub_error(hub_at(&server.url(), &cache).offline(true).download(NAME)), Error::NotCached { .. }));
    // And is made whole.
    assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
}

#[test]
fn a_download_is_cancelled() {
    let (files, cache) = (files(), Folder::new("hub-cancel"));
    let server = faulty(&files, |_, _, reply| reply);
    let canceller = LoadCanceller::new();
    let cancel = canceller.clone();
    let options = options().hub(hub_at(&server.url(), &cache)).load_canceller(canceller).progress(move |progress| {
        if progress.done >= 1_000_000 {
            cancel.cancel();
        }
    });
    assert_eq!(options.load(NAME).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    let partial = blobs(&cache).join(format!("{}.incomplete", sha256(&files.0[WEIGHTS])));
    assert!((1_000_000..3_000_000).contains(&partial.metadata().expect("what arrived").len()));
    assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let (files, cache) = (files(), Folder::new("hub-full"));
    fs::create_dir_all(blobs(&cache)).expect("a folder");
    let partial = blobs(&cache).join(format!("{}.incomplete", sha256(b"{}")));
    std::os::unix::fs::symlink("/dev/full", partial).expect("a link");
    let server = faulty(&files, |_, _, reply| reply);
    let error = hub_error(hub_at(&server.url(), &cache).download(NAME));
    assert!(matches!(error, Error::NoSpace { needed: 2, .. }), "{error}");
}

/// Lets through when enough have come.
#[derive(Default)]
struct Gate {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    fn come(&self) {
        *self.count.lock().expect("the gate") += 1;
        self.changed.notify_all();
    }

    fn wait_for(&self, enough: usize) {
        let count = self.count.lock().expect("the gate");
        drop(self.changed.wait_while(count, |count| *count < enough).expect("the gate"));
    }
}

/// A server that sends the weights when two clients know how long they are.
fn server_for_two(files: &Files) -> Server {
    let (files, gate) = (files.clone(), Gate::default());
    Server::start(move |asked| {
        if asked.path.ends_with(WEIGHTS) {
            match asked.gets(WEIGHTS) {
                true => gate.wait_for(2),
                false => gate.come(),
            }
        }
        files.reply(asked)
    })
}

#[test]
fn two_threads_download_once() {
    let (files, cache) = (files(), Folder::new("hub-threads"));
    let server = server_for_two(&files);
    let hub = hub_at(&server.url(), &cache);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| hub.download(NAME).expect("a folder"))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    paths.iter().for_each(|path| assert_same(path, &files));
    assert_eq!(server.gets(WEIGHTS), 1);
}

#[test]
fn files_are_downloaded_at_the_same_time() {
    let index = r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#;
    let shards: [(&str, &[u8]); 2] = [("a.safetensors", b"a"), ("b.safetensors", b"b")];
    let files = Files::of(&[("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes())]);
    let files = Files(files.0.into_iter().chain(Files::of(&shards).0).collect());
    for is_refused in [false, true] {
        let cache = Folder::new(&format!("hub-both-{is_refused}"));
        let (served, gate) = (files.clone(), Gate::default());
        let server = Server::start(move |asked| {
            if asked.gets(".safetensors") {
                // Neither is answered before both have been asked for.
                gate.come();
                gate.wait_for(2);
            }
            match is_refused && asked.gets("b.safetensors") {
                true => Reply::status(403),
                false => served.reply(asked),
            }
        });
        let result = hub_at(&server.url(), &cache).download(NAME);
        match is_refused {
            true => assert!(matches!(hub_error(result), Error::Forbidden { .. })),
            false => assert_same(&result.expect("a folder"), &files),
        }
    }
}

/// As [`files`], with weights that are worth several connections.
fn large_files() -> Files {
    let mut files = files();
    let weights: Vec<u8> = (0..45_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    files.0.insert(WEIGHTS.into(), weights);
    files
}

#[test]
fn a_large_file_over_several_connections() {
    let (files, cache) = (large_files(), Folder::new("hub-large"));
    let gate = Gate::default();
    let server = faulty(&files, move |_, _, reply| {
        // No piece is answered before several have been asked for.
        gate.come();
        gate.wait_for(4);
        reply
    });
    assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
    let mut pieces: Vec<_> = server.asked().iter().filter(|asked| asked.gets(WEIGHTS)).map(Asked::from).collect();
    pieces.sort_unstable();
    let expected: Vec<_> = (0..6).map(|piece| Some(piece << 23)).collect();
    assert_eq!(pieces, expected, "each piece is asked for once");
}

#[test]
fn pieces_that_do_not_come() {
    let files = large_files();
    let faults: [fn(Reply) -> Reply; 5] = [
        |reply| reply.cut(5_000_000),
        |_| Reply::status(403),
        |_| Reply::status(416),
        |reply| Reply { headers: Vec::new(), ..reply },
        |mut reply| {
            reply.body.pop();
            reply
        },
    ];
    for (i, fault) in faults.into_iter().enumerate() {
        let cache = Folder::new(&format!("hub-pieces-{i}"));
        // The third piece is never had as such, but as a part of the rest.
        let server = faulty(&files, move |_, asked, reply| match (asked.from(), asked.last()) {
            (Some(from), Some(_)) if from == 2 << 23 => fault(reply),
            _ => reply,
        });
        assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
        let rest = server.asked().into_iter().find(|asked| asked.gets(WEIGHTS) && asked.last().is_none());
        assert_eq!(rest.expect("one connection for the rest").from(), Some(2 << 23));
    }
    // A server without ranges.
    let (cache, served) = (Folder::new("hub-pieces-none"), files.clone());
    let server = faulty(&files, move |_, _, _| Reply::status(200).body(served.0[WEIGHTS].as_slice()));
    assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
    // A piece with other bytes is found out in the end.
    let cache = Folder::new("hub-pieces-wrong");
    let server = faulty(&files, |_, asked, mut reply| {
        if asked.from() == Some(2 << 23) {
            reply.body[7] ^= 1;
        }
        reply
    });
    assert!(matches!(hub_error(hub_at(&server.url(), &cache).download(NAME)), Error::Damaged { .. }));
}

/// Another process that downloads: this program with one test.
fn process(server: &Server, cache: &Folder) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "--ignored", "another_process"])
        .env("QWEN_TEST_HUB", server.url())
        .env("QWEN_TEST_CACHE", &cache.0)
        .stdout(Stdio::null())
        .spawn()
        .expect("a process")
}

#[test]
#[ignore = "other tests start it as a process"]
fn another_process() {
    let variable = |name: &str| std::env::var(name).expect("a test starts this");
    let hub = Hub::new().endpoint(variable("QWEN_TEST_HUB")).cache_dir(variable("QWEN_TEST_CACHE"));
    hub.offline(false).token("").max_wait(Duration::ZERO).download(NAME).expect("a folder");
}

#[test]
fn two_processes_download_once() {
    let (files, cache) = (files(), Folder::new("hub-processes"));
    let server = server_for_two(&files);
    let processes = [process(&server, &cache), process(&server, &cache)];
    for mut process in processes {
        assert!(process.wait().expect("its end").success());
    }
    assert_eq!(server.gets(WEIGHTS), 1);
    assert_same(&cache.0.join("models--org--model/snapshots").join(COMMIT), &files);
}

#[test]
fn a_process_that_is_killed_leaves_what_it_has() {
    let (files, cache) = (files(), Folder::new("hub-killed"));
    // The connection stays open with a third of the bytes until its client is gone.
    let gate = Arc::new(Gate::default());
    let gone = Arc::clone(&gate);
    let hanging = faulty(&files, move |_, _, reply| {
        let gone = Arc::clone(&gone);
        reply.cut(1_000_000).hold(move || gone.wait_for(1))
    });
    let mut process = process(&hanging, &cache);
    let partial = blobs(&cache).join(format!("{}.incomplete", sha256(&files.0[WEIGHTS])));
    while partial.metadata().map_or(0, |metadata| metadata.len()) < 1_000_000 {
        assert!(process.try_wait().expect("its state").is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    process.kill().expect("it runs");
    process.wait().expect("its end");
    gate.come();
    assert!(partial.is_file() && !blobs(&cache).join(sha256(&files.0[WEIGHTS])).exists());
    let server = faulty(&files, |_, _, reply| reply);
    assert_same(&hub_at(&server.url(), &cache).download(NAME).expect("a folder"), &files);
    assert_eq!(server.asked().iter().find(|asked| asked.gets(WEIGHTS)).and_then(Asked::from), Some(1_000_000));
}
