//! Reading tokenizer.json: which keys matter, and which values are refused rather than misread.
//!
//! The file is large (7 MB, 151,643 tokens), so it is read in one pass straight into what the BPE model wants;
//! the library's own reader goes through a tree of JSON values first and takes half as long again.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use ahash::AHashMap;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::models::bpe::BPE;

use crate::added::{AddedToken, AddedTokens};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;

pub(crate) const TOKENIZER_JSON: &str = "tokenizer.json";

/// Ten times the largest file of this family; beyond it lies a mistake or an attack.
const MAX_BYTES: u64 = 128 << 20;

/// Reads a file of a tokenizer's folder; `None` where it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let unreadable = |e: std::io::Error| Error::Read {
        path: path.into(),
        reason: e.to_string(),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let size = file.metadata().map_err(unreadable)?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(MAX_BYTES)).unwrap_or(0));
    // The limit is on what is read: a pipe or a growing file has no size beforehand.
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    check_size(&path.display().to_string(), bytes.len())?;
    Ok(Some(bytes))
}

fn check_size(file: &str, bytes: usize) -> Result<()> {
    let bytes = bytes as u64;
    if bytes > MAX_BYTES {
        return Err(Error::TooLarge {
            file: file.into(),
            bytes,
            limit: MAX_BYTES,
        });
    }
    Ok(())
}

/// Parses tokenizer.json.
pub(crate) fn parse(json: &[u8]) -> Result<(AddedTokens, Pipeline)> {
    check_size(TOKENIZER_JSON, json.len())?;
    let file: TokenizerJson<'_> = serde_json::from_slice(json).map_err(|e| {
        let key = if e.is_data() { "its keys" } else { "its JSON" };
        Error::invalid(TOKENIZER_JSON, key, e)
    })?;
    check_decoder(file.decoder.as_ref())?;
    let added = AddedTokens::new(file.added_tokens)?;
    Ok((
        added,
        Pipeline::new(file.normalizer, file.pre_tokenizer, file.model.build()?)?,
    ))
}

#[derive(Deserialize)]
struct TokenizerJson<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: ModelJson<'a>,
}

/// The ids are turned into bytes here, not by the library, so the decoder must be the one that this is.
fn check_decoder(decoder: Option<&Value>) -> Result<()> {
    let kind = decoder
        .and_then(|d| d.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("none");
    if kind == "ByteLevel" {
        return Ok(());
    }
    Err(Error::unsupported(
        TOKENIZER_JSON,
        "decoder.type",
        kind,
        "this crate reads byte-level BPE (ByteLevel)",
    ))
}

#[derive(Deserialize)]
struct ModelJson<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Option<AHashMap<String, u32>>,
    #[serde(borrow)]
    merges: Option<Vec<Merge<'a>>>,
}

impl ModelJson<'_> {
    fn build(self) -> Result<BPE> {
        self.check()?;
        let (Some(vocab), Some(merges)) = (self.vocab, self.merges) else {
            return Err(Error::invalid(
                TOKENIZER_JSON,
                "model",
                "has no `vocab` or no `merges`",
            ));
        };
        let merges = check_merges(merges, &vocab)?;
        // No cache of words: the library keeps it in thread-local storage, which outlives the tokenizer.
        let mut builder = BPE::builder()
            .cache_capacity(0)
            .fuse_unk(self.fuse_unk)
            .ignore_merges(self.ignore_merges);
        if let Some(unk_token) = self.unk_token {
            if !vocab.contains_key(&unk_token) {
                let problem = format!("`{unk_token}` is not in `model.vocab`");
                return Err(Error::invalid(TOKENIZER_JSON, "model.unk_token", problem));
            }
            builder = builder.unk_token(unk_token);
        }
        builder
            .vocab_and_merges(vocab, merges)
            .build()
            .map_err(|e| Error::invalid(TOKENIZER_JSON, "model.merges", e))
    }

    fn check(&self) -> Result<()> {
        const HELP: &str = "this crate reads byte-level BPE as Qwen2.5 has it";
        let refuse = |key: &str, found: &dyn fmt::Display| {
            Err(Error::unsupported(
                TOKENIZER_JSON,
                &format!("model.{key}"),
                found,
                HELP,
            ))
        };
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
        match &self.kind {
            Some(kind) if kind != "BPE" => return refuse("type", kind),
            _ => {}
        }
        if is_set(&self.continuing_subword_prefix) {
            return refuse("continuing_subword_prefix", &"a prefix");
        }
        if is_set(&self.end_of_word_suffix) {
            return refuse("end_of_word_suffix", &"a suffix");
        }
        if self.byte_fallback {
            return refuse("byte_fallback", &"true");
        }
        match self.dropout {
            Some(dropout) if dropout != 0.0 => refuse("dropout", &dropout),
            _ => Ok(()),
        }
    }
}

/// One merge: `"a b"` in older files, `["a", "b"]` in newer ones.
struct Merge<'a>(Cow<'a, str>, Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;

        fn split(merge: &str) -> Option<(&str, &str)> {
            merge
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' '))
        }

        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a merge: two tokens with a space between them, or a list of two tokens",
                )
            }

            fn visit_borrowed_str<E: de::Error>(
                self,
                merge: &'de str,
            ) -> std::result::Result<Self::Value, E> {
                let (left, right) = split(merge)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(merge), &self))?;
                Ok(Merge(left.into(), right.into()))
            }

            fn visit_str<E: de::Error>(self, merge: &str) -> std::result::Result<Self::Value, E> {
                let (left, right) = split(merge)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(merge), &self))?;
                Ok(Merge(left.to_owned().into(), right.to_owned().into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let mut next = |i| {
                    seq.next_element::<Cow<'de, str>>()?
                        .ok_or_else(|| de::Error::invalid_length(i, &self))
                };
                let merge = Merge(next(0)?, next(1)?);
                match seq.next_element::<de::IgnoredAny>()? {
                    Some(_) => Err(de::Error::invalid_length(3, &self)),
                    None => Ok(merge),
                }
            }
        }

        deserializer.deserialize_any(MergeVisitor)
    }
}

/// Owned merges, none of which makes a token longer than the longest of the vocabulary.
///
/// The library's builder copies each pair into a buffer of that length and would panic on a longer one; that the
/// three tokens exist it checks itself.
fn check_merges(
    merges: Vec<Merge<'_>>,
    vocab: &AHashMap<String, u32>,
) -> Result<Vec<(String, String)>> {
    let longest = vocab.keys().map(String::len).max().unwrap_or(0);
    let mut owned = Vec::with_capacity(merges.len());
    for (i, Merge(left, right)) in merges.into_iter().enumerate() {
        if left.len() + right.len() > longest {
            let key = format!("model.merges[{i}]");
            let problem =
                format!("`{left}` and `{right}` make a token which is not in `model.vocab`");
            return Err(Error::invalid(TOKENIZER_JSON, &key, problem));
        }
        owned.push((left.into_owned(), right.into_owned()));
    }
    Ok(owned)
}
