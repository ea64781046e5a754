//! What can go wrong, and what to do about it.
//!
//! One enum for the whole crate: every message names the file (or the part of the request), the key, what was
//! found there, and the way out. Nothing in this crate panics on what a file, a prompt or a caller holds.

use std::path::PathBuf;

/// The file that errors of the vocabulary name.
pub(crate) const TOKENIZER_JSON: &str = "tokenizer.json";

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of loading a tokenizer, encoding text or rendering a chat.
///
/// ```
/// use qwen_tokenizer::{Error, Tokenizer};
///
/// let error = Tokenizer::from_bytes(b"{}", None).unwrap_err();
/// assert!(matches!(error, Error::Invalid { .. }));
/// assert!(error.to_string().starts_with("tokenizer.json: "));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error(
        "cannot read {path}: {reason}; a tokenizer is a folder with tokenizer.json and, for chats, tokenizer_config.json",
        path = path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },

    /// A file is larger than any tokenizer's file could sensibly be.
    #[error("{file}: {bytes} bytes, more than the {limit} this crate reads; is it the right file?")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size, or a lower bound of it.
        bytes: u64,
        /// The most this crate reads.
        limit: u64,
    },

    /// A file does not hold what it should.
    #[error("{file}: {key}: {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// The key inside it, as a path with dots.
        key: String,
        /// What is wrong there.
        problem: String,
    },

    /// A file is well formed but asks for something this crate does not do, and would do wrongly if it tried.
    #[error("{file}: {key}: {found} is not supported; {help}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key inside it, as a path with dots.
        key: String,
        /// What the file asks for.
        found: String,
        /// What is supported.
        help: &'static str,
    },

    /// A chat was asked of a tokenizer which has no chat template.
    #[error(
        "this tokenizer has no chat template (looked for: {looked_for}); base models have none: \
         encode text, or give one with Tokenizer::with_chat_template"
    )]
    NoChatTemplate {
        /// The places where a template was looked for.
        looked_for: String,
    },

    /// A chat template is not valid Jinja, or uses what this crate does not have.
    #[error("chat template `{name}`, line {line}: {problem}")]
    TemplateSyntax {
        /// The template's name: `default`, `tool_use` or another of tokenizer_config.json.
        name: String,
        /// The line, counted from 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },

    /// A chat template failed on these messages, for example on a message without content.
    #[error("chat template `{name}`, line {line}: {problem}; check the messages against what the template expects")]
    Render {
        /// The template's name.
        name: String,
        /// The line, counted from 1.
        line: usize,
        /// What failed.
        problem: String,
    },

    /// A chat template passed one of the limits that keep a hostile one from ending or exhausting the process.
    #[error("chat template `{name}`, line {line}: {found} {what}, the limit is {limit}; is it the right template?")]
    TemplateLimit {
        /// The template's name.
        name: String,
        /// The line, counted from 1; 0 for the source as a whole.
        line: usize,
        /// What is limited, such as `bytes of memory`.
        what: &'static str,
        /// How many there would have been, or the first number beyond the limit.
        found: u64,
        /// The most there may be. Limits on work and memory grow with the messages.
        limit: u64,
    },

    /// A chat template refused the messages with `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },

    /// Messages, tools or arguments given as JSON text are not valid.
    #[error("{what}: {problem}")]
    Json {
        /// Which text: `messages`, `tools` or a call's `arguments`.
        what: String,
        /// What is wrong with it.
        problem: String,
    },

    /// A message holds content which the checkpoint's template has no way to show, such as an image.
    #[error("message {index}: content part of type `{kind}`, but this checkpoint's template takes text alone")]
    ContentPart {
        /// The message, counted from 0.
        index: usize,
        /// The part's `type`.
        kind: String,
    },

    /// The template treats its own control tokens as text, so contents and template cannot be told apart.
    #[error(
        "this chat template searches or rewrites its own control tokens, so text and control tokens of these \
         messages cannot be told apart; if the contents are trusted, set trust_contents(true)"
    )]
    ControlTokensRewritten,

    /// A text has more tokens than there is room for. It is not encoded to its end.
    #[error("the text has more than {limit} tokens{bytes}, the most there is room for; shorten it", bytes = of(*bytes))]
    TooManyTokens {
        /// The most tokens there may be.
        limit: usize,
        /// The bytes of the text, where already these are more than any so many tokens have.
        bytes: Option<usize>,
    },

    /// The text could not be encoded.
    #[error("cannot encode the text: {reason}")]
    Encode {
        /// What the model said.
        reason: String,
    },
}

fn of(bytes: Option<usize>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(" in its {bytes} bytes"))
}

impl Error {
    pub(crate) fn invalid(file: &str, key: &str, problem: impl ToString) -> Self {
        Self::Invalid { file: file.into(), key: key.into(), problem: problem.to_string() }
    }

    pub(crate) fn unsupported(file: &str, key: &str, found: impl ToString, help: &'static str) -> Self {
        Self::Unsupported { file: file.into(), key: key.into(), found: found.to_string(), help }
    }
}
