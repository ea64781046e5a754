//! The error of the facade: what the model layer or the text layer reported, and what a program does about it.

use std::convert::Infallible;

pub use qwen_core::ErrorKind;

/// A result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text names the place (file, key, tensor, position) and, where there is one, the way out.
///
/// [`Error::kind`] is for programs: it says what to do. The `Display` form is for people and says all of it, so
/// [`source`](std::error::Error::source) is always `None`: `anyhow` and others that print a chain of sources print nothing
/// twice. Whatever this crate parses from text has an error that `?` turns into this one.
///
/// ```
/// use qwen::{Engine, ErrorKind};
///
/// let error = Engine::load("no/such/folder").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// assert!(error.to_string().starts_with("no/such/folder: "));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of checkpoints, memory, requests and devices.
    #[error(transparent)]
    Model(#[from] qwen_core::Error),
    /// An error of tokenizers, templates and messages.
    #[error(transparent)]
    Text(#[from] qwen_tokenizer::Error),
    /// An answer that had to be a value of a type ended before it was one, or could not be read as one: see
    /// `Engine::generate_as`.
    #[error("the answer is no value of the type: {reason}")]
    Unfinished {
        /// The answer as far as it came. The error's own text has nothing of it.
        text: String,
        /// Why.
        reason: String,
        /// [`ErrorKind::Unfinished`], or that of the error that ended the answer.
        kind: ErrorKind,
    },
    /// An error of the hub, of its cache, or of the way there.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::error::Error),
}

/// The figures of [`ErrorKind::PromptTooLong`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptLength {
    /// Tokens of the prompt; `None` where it was not encoded to its end, as it had more than `limit` before.
    pub tokens: Option<usize>,
    /// The most that it may have.
    pub limit: usize,
}

impl Error {
    /// What the error asks of the program.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        use qwen_tokenizer::Error as Text;
        match self {
            Error::Model(error) => error.kind(),
            Error::Unfinished { kind, .. } => *kind,
            #[cfg(feature = "hub")]
            Error::Hub(error) => error.kind(),
            Error::Text(error) => match error {
                Text::Read { kind: std::io::ErrorKind::NotFound, .. } => ErrorKind::NotFound,
                Text::Read { .. } => ErrorKind::Io,
                Text::Unsupported { .. } | Text::NoChatTemplate { .. } => ErrorKind::Unsupported,
                Text::Render { .. }
                | Text::Refused { .. }
                | Text::Json { .. }
                | Text::ContentPart { .. }
                | Text::ControlTokensRewritten => ErrorKind::InvalidMessages,
                Text::TooManyTokens { .. } => ErrorKind::PromptTooLong,
                Text::Encode { .. } => ErrorKind::InvalidArgument,
                // What is left is about files: `TooLarge`, `Invalid`, `TemplateSyntax`, `TemplateLimit`.
                _ => ErrorKind::InvalidModel,
            },
        }
    }

    /// How long the prompt is and may be, of an error of the kind [`ErrorKind::PromptTooLong`].
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions};
    ///
    /// let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model");
    /// let engine = Engine::options().context(8).load(model)?;
    /// let error = engine.generate_ids(vec![1; 9], &GenerateOptions::new()).unwrap_err();
    /// let length = error.prompt_length().expect("it is too long");
    /// assert_eq!((length.tokens, length.limit), (Some(9), 7));
    /// # Ok::<(), qwen::Error>(())
    /// ```
    #[must_use]
    pub fn prompt_length(&self) -> Option<PromptLength> {
        match *self {
            Error::Model(qwen_core::Error::ContextLength { prompt, limit, .. }) => {
                Some(PromptLength { tokens: Some(prompt), limit })
            }
            Error::Text(qwen_tokenizer::Error::TooManyTokens { limit, .. }) => {
                Some(PromptLength { tokens: None, limit })
            }
            _ => None,
        }
    }

    pub(crate) fn stopped(reason: &str) -> Self {
        Error::Model(qwen_core::Error::EngineStopped { reason: reason.into() })
    }
}

/// Of texts that always mean something, such as an [`AdapterChoice`](crate::AdapterChoice) or a [`Role`](crate::Role).
impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
