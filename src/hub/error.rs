//! What can go wrong with the hub, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use qwen_core::{ErrorKind, HumanBytes};

/// Why a checkpoint could not be had from the hub. The text says all of it and the way out, as that of
/// [`qwen::Error`](enum@crate::Error).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hub has no such repository, revision or file.
    #[error("{name}: {reason}")]
    NotFound {
        /// The repository, with its revision or file.
        name: String,
        /// What is not there, and what to do.
        reason: String,
    },
    /// The hub does not know who asks: the repository does not exist, or is private, or the token is wrong.
    #[error(
        "{repository}: the hub answers 401: there is no such repository (nor such a path on this machine), or it is \
         private; if the name is right, set HF_TOKEN to a token that may read it"
    )]
    Unauthorized {
        /// `owner/name`.
        repository: String,
    },
    /// The repository asks for an agreement first, or the token has no right to read it.
    #[error(
        "{repository}: the hub answers 403: accept the terms on the repository's page ({page}), and set HF_TOKEN to a \
         token of the account that did"
    )]
    Forbidden {
        /// `owner/name`.
        repository: String,
        /// Its page.
        page: String,
    },
    /// The checkpoint is not in the cache, and the network may not be used.
    #[error("{name} is not in the cache at {cache}: {reason}; load it once without HF_HUB_OFFLINE", cache = cache.display())]
    NotCached {
        /// As it was asked for.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The repository has no checkpoint that can be loaded, or several.
    #[error("{name}: {reason}")]
    NoCheckpoint {
        /// As it was asked for.
        name: String,
        /// What was found, and what to ask for instead.
        reason: String,
    },
    /// What arrived is not what the hub announced. It was not kept.
    #[error("{file}: {reason}; it was not kept: load again")]
    Damaged {
        /// The file within its repository.
        file: String,
        /// The length or the checksum, announced and found.
        reason: String,
    },
    /// The disk is full. What arrived is kept, and goes on from there.
    #[error("{path}: no room on the disk for the {needed} that are missing: free some, or set HF_HOME", path = path.display(), needed = HumanBytes(*needed))]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// Bytes that are missing of it.
        needed: u64,
    },
    /// The hub refuses for now.
    #[error(
        "{url}: too many requests{}; a token (HF_TOKEN) raises the limit",
        match retry_after { Some(time) => format!(": try again in {} s", time.as_secs()), None => String::new() }
    )]
    RateLimited {
        /// The request.
        url: String,
        /// When it may be tried again, if the hub says so.
        retry_after: Option<Duration>,
    },
    /// The hub could not be reached, or the connection broke too often. What arrived is kept, and goes on from there.
    #[error("{url}: {reason}")]
    Network {
        /// The request.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The hub answered something that is no answer.
    #[error("{url}: {reason}")]
    Protocol {
        /// The request.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Encrypted connections need a processor with other instructions.
    #[error(
        "no TLS on this processor, which lacks {missing}: give `Hub::crypto_provider` another provider of rustls (such as \
         that of rustls-ring), or download the checkpoint with another program and load it by its path"
    )]
    NoTls {
        /// The instructions.
        missing: String,
    },
    /// A file of the cache could not be read or written.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
}

impl Error {
    /// What the error asks of the program.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotFound { .. } | Error::Unauthorized { .. } | Error::NotCached { .. } => ErrorKind::NotFound,
            Error::NoCheckpoint { .. } | Error::NoTls { .. } => ErrorKind::Unsupported,
            Error::Damaged { .. } => ErrorKind::InvalidModel,
            Error::RateLimited { .. } => ErrorKind::Busy,
            Error::Forbidden { .. }
            | Error::NoSpace { .. }
            | Error::Network { .. }
            | Error::Protocol { .. }
            | Error::Io { .. } => ErrorKind::Io,
        }
    }
}
