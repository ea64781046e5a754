//! The error of the facade: what the model layer or the text layer reported.

/// A result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text names the place (file, key, tensor, position) and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of checkpoints, memory, requests and devices.
    #[error(transparent)]
    Model(#[from] qwen_core::Error),
    /// An error of tokenizers, templates and messages.
    #[error(transparent)]
    Text(#[from] qwen_tokenizer::Error),
}

impl Error {
    pub(crate) fn stopped(reason: &str) -> Self {
        Error::Model(qwen_core::Error::EngineStopped { reason: reason.into() })
    }
}
