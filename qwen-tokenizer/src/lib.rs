//! Qwen2.5 text to ids and back, chat templates, messages and tool calls.
//!
//! ```
//! # fn main() -> Result<(), qwen_tokenizer::Error> {
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
//! use qwen_tokenizer::{ChatInput, Message, Tokenizer};
//!
//! let tokenizer = Tokenizer::from_dir(folder)?;
//! let messages = [Message::user("Why is the sky blue?")];
//! let prompt = tokenizer.encode_chat(&ChatInput::new(&messages))?;
//!
//! // What a model answers comes as ids, one at a time.
//! let mut stream = tokenizer.decode_stream(true);
//! # let answer = prompt.ids;
//! for id in answer {
//!     if let Some(piece) = stream.push(id) {
//!         print!("{piece}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is exact
//!
//! - Ids are those of Python's `tokenizers` and `transformers`, for every text and every chat.
//! - A chat's text is the checkpoint's own Jinja template's, byte for byte.
//! - Pieces of a [`DecodeStream`] put together are the decoded text; no character is split or lost.
//!
//! # Who may write control tokens
//!
//! The template and the model may; others may not. A user's or a tool's message that says `<|im_end|>` says just these
//! characters, and cannot end its turn. What the assistant said is what the model generated: its `<tool_call>` is the
//! control token. [`ChatInput::trust_contents`] trusts all contents.
//!
//! # What is not here
//!
//! Models, sampling and stopping are in `qwen-core`. Only byte-level
//! BPE is read, from tokenizer.json, from vocab.json and merges.txt, or from the vocabulary of a GGUF file, as every
//! Qwen2.5 checkpoint has it; the GGUF file itself is opened elsewhere.
//!
//! # Where things are
//!
//! [`Tokenizer`] in `tokenizer` (and `lookup`) puts the parts together: `file` and `config` read the checkpoint's
//! files, `older` those of folders without tokenizer.json, `declared` adds the tokens that tokenizer.json lacks,
//! `gguf` takes the vocabulary of a GGUF file, `export` makes one; `added` finds control tokens, `pipeline` and
//! `split` encode the text between them, `decode` goes back; `message` and `tool` are the types of a chat, `template`
//! renders it by `jinja`, `guard` tells control tokens apart, `chat` encodes the result, `answer` finds calls in an
//! answer, `answers` asks templates about them.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::string_slice))]

mod added;
mod alphabet;
mod answer;
mod answers;
mod bounded;
mod chat;
mod codec;
mod components;
mod config;
mod declared;
mod decode;
mod entries;
mod error;
mod export;
mod file;
mod gguf;
mod guard;
mod jinja;
mod lookup;
mod message;
mod older;
mod pipeline;
mod split;
mod template;
mod tokenizer;
mod tool;
mod vocabulary;

pub use answer::{AnswerParser, BrokenCall, CallForms, Delta, ToolCallDelta};
pub use chat::EncodedChat;
pub use decode::DecodeStream;
pub use error::{Error, Result};
pub use export::OwnedGgufVocabulary;
pub use gguf::GgufVocabulary;
pub use message::{Content, ContentPart, Message, Role};
pub use template::{ChatInput, ChatTemplate};
pub use tokenizer::Tokenizer;
pub use tool::{Arguments, FunctionCall, Tool, ToolCall};
