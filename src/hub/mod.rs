//! Checkpoints by name: found on the Hugging Face hub, downloaded once, and kept in the cache that Python's tools use too.
//!
//! [`Engine::load`](crate::Engine::load) takes a name wherever it takes a path, and a path that exists is never taken for
//! a name. What happens is in four steps: the list of the repository's files at a commit, the choice of the few that are
//! needed, each of them downloaded and checked, and their names in a folder of the cache. Nothing here knows what is in a
//! checkpoint but the names of its files.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod cache;
mod client;
mod digest;
mod environment;
pub(crate) mod error;
mod fetch;
mod ranges;
mod select;
mod tls;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use error::Error;
/// The cryptography of encrypted connections: see [`Hub::crypto_provider`].
pub use rustls::crypto::CryptoProvider;

use cache::Repository;
use client::{Announced, Client};
use environment::Environment;
use select::{INDEX, Opened, Selection};

use crate::error::Result;
use crate::events::{info, warn};
pub use crate::model_name::ModelName;
use crate::progress::{LoadCanceller, LoadObserver, LoadProgress, LoadStage};

/// The most large files that are downloaded at the same time, or parts of one.
const MAX_CONNECTIONS: usize = 4;

/// The longest time between two tries, by default.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Download a checkpoint by its name, with what the environment says, and return its path: that of a folder, or of a GGUF
/// file. What is in the cache is not downloaded again.
///
/// ```no_run
/// let path = qwen::hub::download("Qwen/Qwen2.5-0.5B-Instruct-GGUF:q4_k_m")?;
/// let engine = qwen::Engine::load(&path)?;
/// # Ok::<(), qwen::Error>(())
/// ```
///
/// # Errors
/// As [`Hub::download`].
pub fn download(name: &str) -> Result<PathBuf> {
    Hub::new().download(name)
}

/// Where checkpoints come from and where they are kept: what the environment says, unless a program sets it. The variables
/// are those of Python's `huggingface_hub`; `docs/hub.md` lists them.
///
/// ```no_run
/// use qwen::hub::Hub;
/// let hub = Hub::new().cache_dir("/srv/models").offline(true);
/// let engine = qwen::EngineOptions::new().hub(hub).load("Qwen/Qwen2.5-0.5B-Instruct")?;
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    is_offline: bool,
    max_wait: Duration,
    crypto_provider: Option<Arc<CryptoProvider>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Logs are no place for the token.
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("has_token", &self.token.is_some())
            .field("is_offline", &self.is_offline)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// What the environment says: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
    pub fn new() -> Self {
        let Environment { cache, endpoint, token, is_offline } = Environment::read();
        let hub = Hub { endpoint: String::new(), cache, token, is_offline, max_wait: MAX_WAIT, crypto_provider: None };
        hub.endpoint(endpoint)
    }

    /// The address of the hub or of a mirror, with its scheme. Default: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into().trim_end_matches('/').to_owned();
        self
    }

    /// The folder of the cache. Default: `HF_HUB_CACHE`, else the folder `hub` in `HF_HOME`, else in
    /// `~/.cache/huggingface`.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = folder.into();
        self
    }

    /// Who asks: for gated and private repositories. It is sent to the endpoint and to no other host. Default: `HF_TOKEN`,
    /// else the file that `hf auth login` writes.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into()).filter(|token| !token.is_empty());
        self
    }

    /// Whether only the cache is used, and the network never touched. Default: `HF_HUB_OFFLINE`.
    pub fn offline(mut self, offline: bool) -> Self {
        self.is_offline = offline;
        self
    }

    /// The longest time to wait before a request is tried again. One that the hub wants to see later than that fails.
    /// Default 30 s.
    pub fn max_wait(mut self, time: Duration) -> Self {
        self.max_wait = time;
        self
    }

    /// The cryptography of encrypted connections. Default: that of the process
    /// ([`CryptoProvider::install_default`]), else graviola's, which needs no C compiler, and a processor with AES, ADX and
    /// AVX2 (x86-64) or with the cryptographic extensions (aarch64).
    pub fn crypto_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.crypto_provider = Some(provider);
        self
    }

    /// Download a checkpoint by its name and return its path, as [`download`].
    ///
    /// # Errors
    /// A name that is none, or [`crate::Error::Hub`].
    pub fn download(&self, name: &str) -> Result<PathBuf> {
        self.resolve(&name.parse()?, &LoadObserver::default())
    }

    /// As [`Hub::download`], with reports of the bytes so far, and with a handle that cancels.
    ///
    /// # Errors
    /// As [`Hub::download`], and [`qwen_core::Error::Cancelled`].
    pub fn download_with(
        &self,
        name: &str,
        report: impl Fn(LoadProgress) + Send + Sync + 'static,
        canceller: &LoadCanceller,
    ) -> Result<PathBuf> {
        let observer = LoadObserver { report: Some(Arc::new(report)), canceller: canceller.clone() };
        self.resolve(&name.parse()?, &observer)
    }

    /// The path of a checkpoint in the cache, downloaded if need be.
    pub(crate) fn resolve(&self, name: &ModelName, observer: &LoadObserver) -> Result<PathBuf> {
        let repository = Repository::new(&self.cache, name);
        if self.is_offline {
            return Ok(self.cached(&repository, name)?);
        }
        let client = Client::new(self, name, observer);
        let listing = match client.list() {
            Err(crate::Error::Hub(error @ Error::Network { .. })) => {
                // Without a network, what was loaded before loads again.
                return match self.cached(&repository, name) {
                    Ok(path) => {
                        warn!("{error}: {name} is loaded from the cache, as it was there");
                        Ok(path)
                    }
                    Err(_) => Err(error.into()),
                };
            }
            listing => listing?,
        };
        let commit = listing.commit.as_str();
        let Selection { mut files, opened } = select::select(name, &listing.files)?;
        self.fetch_all(&client, &repository, commit, &files)?;
        let folder = repository.snapshot(commit);
        if opened == Opened::Indexed {
            files = select::shards(name, &read(&folder.join(INDEX))?, &listing.files)?;
            self.fetch_all(&client, &repository, commit, &files)?;
        }
        // Last, so that a revision never leads to a snapshot that is not whole.
        repository.write_ref(name.revision(), commit)?;
        Ok(opened_path(folder, opened))
    }

    /// The path of a checkpoint that is whole in the cache.
    fn cached(&self, repository: &Repository, name: &ModelName) -> Result<PathBuf, Error> {
        let missing = |reason: String| Error::NotCached { name: name.to_string(), cache: self.cache.clone(), reason };
        let commit = repository.commit(name.revision());
        let commit = commit.ok_or_else(|| missing(format!("it was never loaded at {}", name.revision())))?;
        let listing = repository.listing(&commit);
        let selection = select::select(name, &listing).map_err(|error| missing(error.to_string()))?;
        let folder = repository.snapshot(&commit);
        if selection.opened == Opened::Indexed {
            let index = read(&folder.join(INDEX))?;
            select::shards(name, &index, &listing).map_err(|error| missing(error.to_string()))?;
        }
        Ok(opened_path(folder, selection.opened))
    }

    /// Bring these files into the snapshot of a commit, which never changes: what is there is not asked for again.
    fn fetch_all(&self, client: &Client<'_>, repository: &Repository, commit: &str, files: &[String]) -> Result<()> {
        let folder = repository.snapshot(commit);
        let mut missing: Vec<(&str, Announced)> = Vec::new();
        for file in files.iter().filter(|file| !folder.join(file).exists()) {
            missing.push((file, client.announced(commit, file)?));
        }
        let progress = Progress::new(client.observer(), missing.iter().map(|(_, announced)| announced.size));
        let large = missing.iter().filter(|(_, announced)| announced.size >= ranges::MIN_BYTES).count();
        let connections = (MAX_CONNECTIONS / large.max(1)).max(1) as u64;
        let next = AtomicUsize::new(0);
        let first_error = Mutex::new(None);
        let work = || {
            while let Some((index, (file, announced))) = missing.iter().enumerate().nth(next.fetch_add(1, Relaxed)) {
                info!("downloading {} ({})", announced.url, qwen_core::HumanBytes(announced.size));
                let report = |len| client.check().and_then(|()| progress.report(index, len));
                let fetched = fetch::fetch(client, repository, file, announced, connections, &report);
                let named = fetched.and_then(|()| Ok(repository.name_blob(commit, file, &announced.etag)?));
                if let Err(error) = named {
                    // The others then fail, too, but only with having been stopped.
                    locked(&first_error).get_or_insert(error);
                    client.fail();
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..missing.len().min(MAX_CONNECTIONS) {
                scope.spawn(work);
            }
            work();
        });
        let first_error = locked(&first_error).take();
        first_error.map_or(Ok(()), Err)
    }
}

/// How many bytes there are of several files.
struct Progress<'a> {
    observer: &'a LoadObserver,
    total: u64,
    done: Mutex<Vec<u64>>,
}

impl<'a> Progress<'a> {
    fn new(observer: &'a LoadObserver, sizes: impl ExactSizeIterator<Item = u64>) -> Self {
        let done = Mutex::new(vec![0; sizes.len()]);
        Progress { observer, total: sizes.sum(), done }
    }

    /// Report that there are `len` bytes of a file; to one thread at a time, so that the sums are in order.
    fn report(&self, file: usize, len: u64) -> Result<()> {
        let mut files = locked(&self.done);
        files.get_mut(file).into_iter().for_each(|known| *known = len);
        let done = files.iter().sum();
        Ok(self.observer.report(LoadProgress { stage: LoadStage::Downloading, done, total: self.total })?)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn opened_path(folder: PathBuf, opened: Opened) -> PathBuf {
    match opened {
        Opened::Folder | Opened::Indexed => folder,
        Opened::File(file) => folder.join(file),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| cache::io_error(path, error))
}
