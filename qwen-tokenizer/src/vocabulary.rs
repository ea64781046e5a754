//! The `model` of tokenizer.json: the tokens of byte-level BPE and their merges.

use std::borrow::Cow;
use std::fmt;

use ahash::AHashMap;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use tokenizers::models::bpe::{BPE, BpeBuilder};

use crate::bounded::{BoundedList, BoundedMap};
use crate::error::{Error, Result, TOKENIZER_JSON};

/// Four times the largest vocabulary of known models.
pub(crate) const MAX_TOKENS: usize = 1 << 20;
pub(crate) const MAX_MERGES: usize = 1 << 21;
/// Ids beyond this are a mistake: memory is planned for all ids below the highest one.
pub(crate) const MAX_ID: u32 = (1 << 24) - 1;
/// The longest token in bytes. Known ones stay below 1 KB.
pub(crate) const MAX_TOKEN_BYTES: usize = 1 << 12;

/// The tokens by their texts, and the merges in their order.
pub(crate) type Lists = (AHashMap<String, u32>, Vec<(String, String)>);

/// Byte-level BPE, and what must be known of its tokens.
pub(crate) struct Model {
    pub(crate) bpe: BPE,
    /// The characters, which are bytes, of the longest token.
    pub(crate) longest: usize,
    pub(crate) highest_id: Option<u32>,
}

impl Model {
    /// No merge may make a token longer than the longest of `vocab`: the library copies each pair into a buffer of that
    /// length and would panic. That the three tokens of a merge exist it checks itself.
    pub(crate) fn new(
        builder: BpeBuilder,
        vocab: AHashMap<String, u32>,
        merges: Vec<(String, String)>,
    ) -> tokenizers::Result<Self> {
        let highest_id = vocab.values().copied().max();
        let longest = vocab.keys().map(|token| token.chars().count()).max().unwrap_or(0);
        // No cache of words: the library keeps it in thread-local storage, which outlives the tokenizer.
        let bpe = builder.cache_capacity(0).vocab_and_merges(vocab, merges).build()?;
        Ok(Self { bpe, longest, highest_id })
    }
}

#[derive(Deserialize)]
pub(crate) struct Vocabulary<'a> {
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
    vocab: Option<BoundedMap<u32, MAX_TOKENS>>,
    #[serde(borrow)]
    merges: Option<BoundedList<Merge<'a>, MAX_MERGES>>,
}

impl<'a> Vocabulary<'a> {
    /// A vocabulary of these tokens and merges.
    pub(crate) fn of_lists(
        vocab: BoundedMap<u32, MAX_TOKENS>,
        merges: BoundedList<(&'a str, &'a str), MAX_MERGES>,
    ) -> Self {
        let merges = merges.0.into_iter().map(|(left, right)| Merge(left.into(), right.into())).collect();
        Self {
            kind: None,
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab: Some(vocab),
            merges: Some(BoundedList(merges)),
        }
    }

    pub(crate) fn build(mut self) -> Result<Model> {
        let (vocab, merges) = self.take_lists()?;
        let mut builder = BPE::builder().fuse_unk(self.fuse_unk).ignore_merges(self.ignore_merges);
        if let Some(unk_token) = self.unk_token {
            if !vocab.contains_key(&unk_token) {
                let problem = format!("`{unk_token}` is not in `model.vocab`");
                return Err(Error::invalid(TOKENIZER_JSON, "model.unk_token", problem));
            }
            builder = builder.unk_token(unk_token);
        }
        Model::new(builder, vocab, merges).map_err(|e| Error::invalid(TOKENIZER_JSON, "model.merges", e))
    }

    /// The tokens and the merges, checked; they are gone from here afterwards.
    pub(crate) fn take_lists(&mut self) -> Result<Lists> {
        self.check()?;
        let (Some(BoundedMap(vocab)), Some(BoundedList(merges))) = (self.vocab.take(), self.merges.take()) else {
            return Err(Error::invalid(TOKENIZER_JSON, "model", "has no `vocab` or no `merges`"));
        };
        for (token, id) in &vocab {
            check_token(token, *id).map_err(|problem| Error::invalid(TOKENIZER_JSON, "model.vocab", problem))?;
        }
        let merges = check_merges(merges, &vocab)?;
        Ok((vocab, merges))
    }

    /// Whether words that are tokens are taken as they are, whatever the merges would make of them.
    pub(crate) fn ignores_merges(&self) -> bool {
        self.ignore_merges
    }

    fn check(&self) -> Result<()> {
        const HELP: &str = "this crate reads byte-level BPE as Qwen2.5 has it";
        let refuse = |key: &str, found: &dyn fmt::Display| {
            Err(Error::unsupported(TOKENIZER_JSON, &format!("model.{key}"), found, HELP))
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
            merge.split_once(' ').filter(|(_, right)| !right.contains(' '))
        }

        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens with a space between them, or a list of two tokens")
            }

            fn visit_borrowed_str<E: de::Error>(self, merge: &'de str) -> std::result::Result<Self::Value, E> {
                let (left, right) = split(merge).ok_or_else(|| E::invalid_value(de::Unexpected::Str(merge), &self))?;
                Ok(Merge(left.into(), right.into()))
            }

            fn visit_str<E: de::Error>(self, merge: &str) -> std::result::Result<Self::Value, E> {
                let (left, right) = split(merge).ok_or_else(|| E::invalid_value(de::Unexpected::Str(merge), &self))?;
                Ok(Merge(left.to_owned().into(), right.to_owned().into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
                let mut next =
                    |i| seq.next_element::<Cow<'de, str>>()?.ok_or_else(|| de::Error::invalid_length(i, &self));
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
fn check_merges(merges: Vec<Merge<'_>>, vocab: &AHashMap<String, u32>) -> Result<Vec<(String, String)>> {
    let longest = vocab.keys().map(String::len).max().unwrap_or(0);
    let mut owned = Vec::with_capacity(merges.len());
    for (i, Merge(left, right)) in merges.into_iter().enumerate() {
        if left.len() + right.len() > longest {
            let key = format!("model.merges[{i}]");
            let problem = format!("`{left}` and `{right}` make a token which is not in `model.vocab`");
            return Err(Error::invalid(TOKENIZER_JSON, &key, problem));
        }
        owned.push((left.into_owned(), right.into_owned()));
    }
    Ok(owned)
}

/// A token's length and id are within bounds, or what is wrong with them.
pub(crate) fn check_token(token: &str, id: u32) -> std::result::Result<(), String> {
    if id > MAX_ID {
        return Err(format!("the id {id} of `{token:.40}` is beyond {MAX_ID}, the highest one"));
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(format!("the token with the id {id} has {} bytes, more than {MAX_TOKEN_BYTES}", token.len()));
    }
    Ok(())
}
