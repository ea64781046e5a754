//! What can go wrong, and what to do about it.
//!
//! One enum for the whole crate: every message names the file (or the part of the request), the key, what was
//! found there, and the way out. Nothing in this crate panics on what a file, a prompt or a caller holds.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The file that errors of the vocabulary name.
pub(crate) const TOKENIZER_JSON: &str = "tokenizer.json";

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of loading a tokenizer, encoding text or rendering a chat.
///
/// The `Display` form says all of it, what the operating system said included, so [`source`](std::error::Error::source)
/// is always `None`: programs that print a whole chain of sources print nothing twice.
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
        /// The kind of what the operating system said; `NotFound` for a folder without a tokenizer.
        kind: io::ErrorKind,
        /// What it said.
        reason: String,
    },

    /// A file is larger than any tokenizer's file could sensibly be.
    #[error(
        "{file}: {bytes}, more than the {limit} that are read; is it the right file?",
        bytes = compared(*bytes, *limit)[0], limit = compared(*bytes, *limit)[1]
    )]
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
    #[error("chat template `{name}`, line {line}: {}; is it the right template?", beyond(what, *found, *limit))]
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
    bytes.map_or_else(String::new, |bytes| format!(" in its {}", HumanBytes(bytes as u64)))
}

fn beyond(what: &str, found: u64, limit: u64) -> String {
    match what.strip_prefix("bytes of ") {
        Some(what) => format!("more than {} of {what}", HumanBytes(limit)),
        None => format!("{found} {what}, the limit is {limit}"),
    }
}

/// A number of bytes as people read it. The layer below the facade has the same, and neither depends on the other.
pub(crate) struct HumanBytes(pub(crate) u64);

/// Two numbers that a message compares: exact ones, where they would look alike.
pub(crate) fn compared(a: u64, b: u64) -> [String; 2] {
    let texts = [a, b].map(|bytes| HumanBytes(bytes).to_string());
    if a != b && texts.first() == texts.last() { [a, b].map(|bytes| format!("{bytes} bytes")) } else { texts }
}

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 2] = ["MiB", "GiB"];
        match self.0 {
            1 => return f.write_str("1 byte"),
            bytes @ 0..1024 => return write!(f, "{bytes} bytes"),
            _ => {}
        }
        let (mut value, mut unit) = (self.0 as f64 / 1024.0, "KiB");
        for next in UNITS {
            // What would be rounded to 1024 of a unit is 1 of the next.
            if value >= 1023.5 {
                (value, unit) = (value / 1024.0, next);
            }
        }
        let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
        write!(f, "{value:.digits$} {unit}")
    }
}

impl Error {
    pub(crate) fn invalid(file: &str, key: &str, problem: impl ToString) -> Self {
        Self::Invalid { file: file.into(), key: key.into(), problem: problem.to_string() }
    }

    pub(crate) fn unsupported(file: &str, key: &str, found: impl ToString, help: &'static str) -> Self {
        Self::Unsupported { file: file.into(), key: key.into(), found: found.to_string(), help }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.00 KiB"),
            (1_048_063, "1023 KiB"),
            (1_048_064, "1.00 MiB"),
            (64 << 20, "64.0 MiB"),
            (5000 << 30, "5000 GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(HumanBytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn figures_that_would_look_alike_are_exact() {
        assert_eq!(compared(2 << 20, 1 << 20), ["2.00 MiB", "1.00 MiB"]);
        assert_eq!(compared((1 << 20) + 1, 1 << 20), ["1048577 bytes", "1048576 bytes"]);
    }

    #[test]
    fn limits_are_told_in_the_unit_of_what_they_limit() {
        let limit = |what, found, limit| {
            let name = "default".into();
            Error::TemplateLimit { name, line: 3, what, found, limit }.to_string()
        };
        let text = limit("bytes of memory", (64 << 20) + 1, 64 << 20);
        assert_eq!(text, "chat template `default`, line 3: more than 64.0 MiB of memory; is it the right template?");
        assert!(limit("levels of nesting", 101, 100).contains("101 levels of nesting, the limit is 100;"));
    }
}
