//! What a program does about an error, as far as it does not only print it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Error;

/// What an error asks of the program that meets it: few kinds, each with an answer of its own. Everything else about an
/// error is in its text. Displayed and serialised as `snake_case` names, for logs and answers of servers.
///
/// ```
/// use qwen_core::{Error, ErrorKind};
///
/// let error = Error::QueueFull { waiting: 8, max_waiting: 8 };
/// assert_eq!(error.kind(), ErrorKind::Busy);
/// assert_eq!(error.kind().to_string(), "busy");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or a folder is not there. Ask for another path.
    NotFound,
    /// The operating system refused something: permission, a full disk, a file that changed while it was read.
    Io,
    /// The files of the model are damaged, incomplete or contradict each other. Download or convert them again.
    InvalidModel,
    /// A saved conversation is damaged, or its K/V is that of another model. Go on with its messages alone, or begin anew.
    InvalidSnapshot,
    /// This library, this build or this device cannot do what was asked. Take another model, feature, device or option.
    Unsupported,
    /// There is not enough memory. Load with a smaller context, batch or model, or on another device.
    OutOfMemory,
    /// An option or a part of the request is out of its bounds. The caller has to change it.
    InvalidArgument,
    /// A grammar or schema is wrong, asks for what cannot be kept, or is too complex. The caller has to change it.
    Grammar,
    /// The answer ended before it was what it had to be. Allow more tokens, or bound what it may be.
    Unfinished,
    /// The prompt and an answer do not fit in the context. Shorten the prompt, or load with a longer context.
    PromptTooLong,
    /// The chat template refuses the messages or tools. The caller has to change them.
    InvalidMessages,
    /// As many requests wait as may. Try again when an answer has ended.
    Busy,
    /// The deadline of the request has passed. Ask again with more time, or when fewer requests run.
    DeadlineExceeded,
    /// The program cancelled it.
    Cancelled,
    /// A device or its driver failed. Load the model again, perhaps on another device.
    Device,
    /// The engine has ended. Load the model again.
    EngineStopped,
    /// The processes that share a model did not find each other, or one of them failed. End this one, and start all again.
    Distributed,
}

impl ErrorKind {
    /// The name in `snake_case`.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not_found",
            ErrorKind::Io => "io",
            ErrorKind::InvalidModel => "invalid_model",
            ErrorKind::InvalidSnapshot => "invalid_snapshot",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::OutOfMemory => "out_of_memory",
            ErrorKind::InvalidArgument => "invalid_argument",
            ErrorKind::Grammar => "grammar",
            ErrorKind::Unfinished => "unfinished",
            ErrorKind::PromptTooLong => "prompt_too_long",
            ErrorKind::InvalidMessages => "invalid_messages",
            ErrorKind::Busy => "busy",
            ErrorKind::DeadlineExceeded => "deadline_exceeded",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Device => "device",
            ErrorKind::EngineStopped => "engine_stopped",
            ErrorKind::Distributed => "distributed",
        }
    }

    /// The kind of what the operating system said.
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error {
    /// What the error asks of the program.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Io { error, .. } => ErrorKind::of_io(error),
            Error::InvalidFile { .. }
            | Error::InvalidConfig { .. }
            | Error::MissingTensor { .. }
            | Error::InvalidTensor { .. }
            | Error::NonFinite { .. } => ErrorKind::InvalidModel,
            Error::DamagedSnapshot { .. } | Error::SnapshotMismatch { .. } => ErrorKind::InvalidSnapshot,
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::DoesNotFit { .. } | Error::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Error::EmptyPrompt
            | Error::InvalidTokenId { .. }
            | Error::InvalidArgument { .. }
            | Error::OutOfBlocks { .. } => ErrorKind::InvalidArgument,
            Error::Grammar { .. } => ErrorKind::Grammar,
            Error::ContextLength { .. } => ErrorKind::PromptTooLong,
            Error::QueueFull { .. } => ErrorKind::Busy,
            Error::DeadlineExceeded { .. } => ErrorKind::DeadlineExceeded,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Device { .. } => ErrorKind::Device,
            Error::StepFailed { kind, .. } => *kind,
            Error::EngineStopped { .. } => ErrorKind::EngineStopped,
            Error::Launch { .. } | Error::Rendezvous { .. } | Error::RankMismatch { .. } | Error::RankFailed { .. } => {
                ErrorKind::Distributed
            }
        }
    }
}
