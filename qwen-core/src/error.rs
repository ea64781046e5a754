//! The one error type of the library: what was wrong, where, and what to do about it.
//!
//! Every failure that input, files or devices can cause is a variant here; nothing in the workspace panics on input. What a
//! program does about it is its [`ErrorKind`].

mod kind;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use crate::numerics::human_bytes::HumanBytes;
pub use kind::ErrorKind;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text of each variant names the place and, where there is one, the way out.
///
/// The `Display` form says all of it, what the operating system said included, so [`source`](std::error::Error::source)
/// is always `None`: programs that print a whole chain of sources print nothing twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be opened, read or mapped.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A file is not what its name or its headers claim.
    #[error("{path}: {reason}", path = path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the offending figures.
        reason: String,
    },
    /// A key of a configuration file, or of the metadata of a GGUF file, is missing, of the wrong kind, or contradicts
    /// another.
    #[error("{path}: key `{key}`: {reason}", path = path.display())]
    InvalidConfig {
        /// The file, e.g. `config.json` or `model.gguf`.
        path: PathBuf,
        /// The key, dotted when nested.
        key: String,
        /// Expected against found.
        reason: String,
    },
    /// The checkpoint is of a kind that this library does not run.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The thing, with its file or key.
        what: String,
        /// Why not, and what to use instead.
        reason: String,
    },
    /// A tensor that the model needs is in none of the checkpoint's files.
    #[error("tensor `{name}` is missing from {path}{instead}", path = path.display())]
    MissingTensor {
        /// The tensor's name.
        name: String,
        /// The checkpoint.
        path: PathBuf,
        /// What is there instead and what to do, as a clause that begins with `: `, or empty.
        instead: String,
    },
    /// A tensor has another shape or element type than the configuration says.
    #[error("tensor `{name}` in {path}: expected {expected}, found {found}", path = path.display())]
    InvalidTensor {
        /// The tensor's name.
        name: String,
        /// The file that holds it.
        path: PathBuf,
        /// Shape and element types that would do.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A file with a saved conversation is not one, is damaged, or is of a version that this library does not know.
    #[error("{path}: {reason}", path = path.display())]
    DamagedSnapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The K/V of a saved conversation is that of another model, or of one that was loaded otherwise.
    #[error(
        "{path}: {what} is {found} where the conversation was saved and {expected} here: go on with its messages, whose \
         K/V is then computed again (ChatState::load, Engine::resume)",
        path = path.display()
    )]
    SnapshotMismatch {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
        /// What this engine has.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// The model, its K/V store and its buffers are larger than the memory that may be used.
    #[error(
        "needs {needed} of memory, {available} are available{advice}",
        needed = HumanBytes::compared(*needed, *available)[0], available = HumanBytes::compared(*needed, *available)[1]
    )]
    DoesNotFit {
        /// Bytes that loading would take.
        needed: u64,
        /// Bytes that the process may use on the device.
        available: u64,
        /// What would fit, as a clause that begins with `: `, or empty.
        advice: String,
    },
    /// More K/V blocks are needed than there are.
    #[error("{needed} K/V blocks are needed, {available} are available: {advice}")]
    OutOfBlocks {
        /// Blocks that the request or the sequence would take.
        needed: usize,
        /// Blocks that it could have.
        available: usize,
        /// What to do about it.
        advice: String,
    },
    /// As many requests wait as may.
    #[error(
        "{waiting} requests are waiting, and at most {max_waiting} may: ask again when an answer has ended, or load with \
         a larger max_waiting"
    )]
    QueueFull {
        /// Requests that are queued and not running.
        waiting: usize,
        /// The bound.
        max_waiting: usize,
    },
    /// The time for a request was over before its answer was complete.
    #[error("the deadline passed with {tokens} tokens of the answer: allow more time, or ask for fewer tokens")]
    DeadlineExceeded {
        /// Tokens of the answer that there were.
        tokens: usize,
    },
    /// A device had no memory left for a part of the model, whatever was planned.
    #[error(
        "{device}: out of memory for `{what}`{}: another program may use the device; free its memory, or load with a \
         smaller memory budget, context or model",
        if *bytes > 0 { format!(" ({})", HumanBytes(*bytes)) } else { String::new() }
    )]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// The matrix or buffer that was to be made.
        what: String,
        /// Its bytes; 0 where only the device's driver knows.
        bytes: u64,
    },
    /// A prompt without a single token.
    #[error("the prompt is empty: at least one token is needed")]
    EmptyPrompt,
    /// A token id that the model has no embedding row for.
    #[error("token id {id} at position {position} is not below the vocabulary size {vocab_size}")]
    InvalidTokenId {
        /// The id.
        id: u32,
        /// Its index within the prompt.
        position: usize,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// The prompt does not leave room for an answer within the context.
    #[error(
        "the prompt has {prompt} tokens and may have {limit}, in a context of {context}: shorten the prompt or load with \
         a longer context"
    )]
    ContextLength {
        /// Tokens of the prompt.
        prompt: usize,
        /// The most that it may have: one less than the context, where an answer follows.
        limit: usize,
        /// Positions that the engine was loaded for.
        context: usize,
    },
    /// The model computed an infinity or not-a-number for a sequence. Others of the same step are not affected.
    #[error(
        "sequence {sequence}: non-finite values first appear in {place}: weights that its tokens use are damaged, or \
         overflow in this precision"
    )]
    NonFinite {
        /// The number of the sequence in its engine ([`crate::engine::SeqId`]).
        sequence: u64,
        /// The embedding, the layer by number, or the output head.
        place: String,
    },
    /// A step failed that computed this sequence among others. The error itself went to another one of them.
    #[error("a step failed: {reason}")]
    StepFailed {
        /// The text of that error.
        reason: String,
        /// And its kind.
        kind: ErrorKind,
    },
    /// The request was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The engine behind a handle has ended.
    #[error("the engine has stopped: {reason}")]
    EngineStopped {
        /// Why, as far as known.
        reason: String,
    },
    /// An argument of a call is out of its bounds.
    #[error("`{name}`: {reason}")]
    InvalidArgument {
        /// The argument or option.
        name: &'static str,
        /// Its bound and the given value.
        reason: String,
    },
    /// What the answer has to be cannot be kept: the grammar or schema is refused, or became too complex on the way. The
    /// text has nothing of the answer.
    #[error("the grammar: {reason}")]
    Grammar {
        /// What is wrong with it, by place where there is one.
        reason: String,
    },
    /// A device refused or failed an operation.
    #[error("{device}: {op}: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// The operation that was queued when it failed.
        op: String,
        /// What the driver or the backend said.
        reason: String,
    },
    /// The environment variables of a launcher are incomplete, are no numbers, or contradict each other.
    #[error("{variables}: {reason}")]
    Launch {
        /// The variables, with their values where that matters.
        variables: String,
        /// What is wrong with them and what to do.
        reason: String,
    },
    /// The processes that share a model did not find each other.
    #[error("rank {rank} at {address}: {reason}")]
    Rendezvous {
        /// The rank that reports it.
        rank: usize,
        /// Where rank 0 listens.
        address: String,
        /// What happened and what to do.
        reason: String,
    },
    /// Two of the processes that share a model were started differently.
    #[error("{what} is {found} on rank {rank} and {expected} on rank 0: start all ranks alike")]
    RankMismatch {
        /// The rank that differs.
        rank: usize,
        /// What differs.
        what: String,
        /// What rank 0 has.
        expected: String,
        /// What the rank has.
        found: String,
    },
    /// Another process of those that share a model failed, ended or fell silent. None of them can go on.
    #[error("rank {rank} failed: {reason}")]
    RankFailed {
        /// That rank.
        rank: usize,
        /// Its own words, or how its connection ended.
        reason: String,
    },
}

impl Error {
    /// An [`Error::InvalidArgument`] from a formatted reason.
    pub fn argument(name: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidArgument { name, reason: reason.into() }
    }

    /// An [`Error::Unsupported`] from its two parts.
    pub fn unsupported(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into(), reason: reason.into() }
    }
}
