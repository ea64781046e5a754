//! Reading tokenizer.json: what may stand in it, and what is refused rather than misread.
//!
//! The file is large (7 MB, 151,643 tokens), so it is read in one pass straight into what the BPE model takes. What is
//! made of it is bounded, not only its bytes: the numbers of tokens and merges, and the size of each component.
//! The components are in `components`, the vocabulary in `vocabulary`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokenizers::Model as _;

use crate::added::{AddedToken, AddedTokens, MAX_ADDED_TOKENS};
use crate::bounded::BoundedList;
use crate::components::Components;
use crate::declared::{DeclaredToken, with_declared};
use crate::error::{Error, Result, TOKENIZER_JSON};
use crate::pipeline::Pipeline;
use crate::vocabulary::Vocabulary;

/// Twice the largest file that known models of any family have; beyond it lies a mistake or an attack.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// Reads a file of a tokenizer's folder; `None` where it does not exist.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let unreadable = |e: io::Error| Error::Read { path: path.into(), kind: e.kind(), reason: e.to_string() };
    // Asked before it is opened: to open a pipe waits for somebody to write.
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    if !metadata.is_file() {
        let reason = "it is not a file but a folder, a pipe or a device".into();
        return Err(Error::Read { path: path.into(), kind: io::ErrorKind::InvalidInput, reason });
    }
    check_size(&path.display().to_string(), metadata.len(), limit)?;
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    // The limit is on what is read, too: the file may grow.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    check_size(&path.display().to_string(), bytes.len() as u64, limit)?;
    Ok(Some(bytes))
}

/// JSON as Python writes and reads it, where `NaN` and `Infinity` are numbers: they become `null`.
pub(crate) fn without_nan(json: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let has = |word: &[u8]| json.windows(word.len()).any(|window| window == word);
    if !has(b"NaN") && !has(b"Infinity") {
        return Cow::Borrowed(json);
    }
    let (mut out, mut rest, mut in_string) = (Vec::with_capacity(json.len()), json, false);
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(word) = WORDS.iter().find(|word| !in_string && rest.starts_with(word)) {
            out.extend_from_slice(b"null");
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        out.push(byte);
        rest = after;
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                out.extend(rest.first());
                rest = rest.get(1..).unwrap_or_default();
            }
            _ => {}
        }
    }
    Cow::Owned(out)
}

pub(crate) fn check_size(file: &str, bytes: u64, limit: u64) -> Result<()> {
    if bytes > limit {
        return Err(Error::TooLarge { file: file.into(), bytes, limit });
    }
    Ok(())
}

/// Reads tokenizer.json of a folder.
pub(crate) fn read_tokenizer(path: &Path) -> Result<Vec<u8>> {
    read(path, MAX_BYTES)?.ok_or_else(|| missing(path))
}

/// That a folder has no tokenizer.
pub(crate) fn missing(path: &Path) -> Error {
    Error::Read {
        path: path.into(),
        kind: io::ErrorKind::NotFound,
        reason: "there is no such file, nor vocab.json and merges.txt in its place".into(),
    }
}

/// Parses tokenizer.json. Tokens of `declared` that it lacks are added.
pub(crate) fn parse(json: &[u8], declared: Vec<DeclaredToken>) -> Result<(AddedTokens, Pipeline)> {
    let mut file = TokenizerJson::parse(json)?;
    let tokens = file.take_added();
    let components = file.components()?;
    let pipeline = Pipeline::new(components, file.model.build()?);
    let model = pipeline.model();
    let added = added_tokens(tokens, declared, |token| model.token_to_id(token), model.get_vocab_size())?;
    Ok((added, pipeline))
}

/// The added tokens of tokenizer.json and those that are declared elsewhere, checked.
pub(crate) fn added_tokens(
    tokens: Vec<AddedToken>,
    declared: Vec<DeclaredToken>,
    vocab_id: impl Fn(&str) -> Option<u32>,
    vocab_size: usize,
) -> Result<AddedTokens> {
    let tokens = with_declared(tokens, declared, vocab_id, vocab_size);
    AddedTokens::new(TOKENIZER_JSON, |i, _| format!("added_tokens[{i}]"), tokens)
}

/// The file's keys, each checked when it is asked for.
#[derive(Deserialize)]
pub(crate) struct TokenizerJson<'a> {
    #[serde(default)]
    added_tokens: BoundedList<AddedToken, MAX_ADDED_TOKENS>,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) model: Vocabulary<'a>,
}

impl<'a> TokenizerJson<'a> {
    pub(crate) fn parse(json: &'a [u8]) -> Result<Self> {
        check_size(TOKENIZER_JSON, json.len() as u64, MAX_BYTES)?;
        serde_json::from_slice(json).map_err(|e| {
            let key = if e.is_data() { "its keys" } else { "its JSON" };
            Error::invalid(TOKENIZER_JSON, key, e)
        })
    }

    /// The added tokens, which are gone from here afterwards.
    pub(crate) fn take_added(&mut self) -> Vec<AddedToken> {
        std::mem::take(&mut self.added_tokens.0)
    }

    pub(crate) fn components(&self) -> Result<Components> {
        Components::parse(self.normalizer, self.pre_tokenizer, self.post_processor, self.decoder)
    }
}
