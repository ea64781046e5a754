//! The vocabulary that a GGUF file carries: what its metadata means, in the terms of tokenizer.json.
//!
//! A GGUF file lists tokens with a type each, and merges, and *names* the rule by which texts are split; tokenizer.json
//! spells that rule out and keeps added tokens apart. Here the one is put into the terms of the other, so that ids and
//! texts are the same from either. Reading GGUF is not done here: whoever does hands over what it found.

use std::collections::HashSet;

use ahash::AHashMap;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, NormalizerWrapper};

use crate::added::{AddedToken, AddedTokens, MAX_ADDED_TOKENS};
use crate::components::Components;
use crate::config::{Config, DEFAULT_TEMPLATE};
use crate::error::{Error, Result, compared};
use crate::file::MAX_BYTES;
use crate::pipeline::Pipeline;
use crate::split::{BYTE_LEVEL_PATTERN, LinearSplit, QWEN2_PATTERN};
use crate::vocabulary::{MAX_MERGES, MAX_TOKENS, Model, check_token};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// The merges of every Qwen2 and Qwen2.5 model: how many, and [`digest`] of them.
const QWEN2_MERGES: (usize, u64) = (151_387, 0x8916_87f6_2ed8_cbd2);

/// Tokens that converters mark as control tokens, for the form of their names, and tokenizer.json of this family does
/// not mark `special`: they are text of an answer.
pub(crate) const NOT_SPECIAL: [&str; 6] =
    ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"];

/// What the metadata of a GGUF file says of its tokenizer, borrowed from whoever read the file.
///
/// Each field is the value of the key under `tokenizer.ggml.` that has its name, except where another is said. Lists
/// and ids are checked by [`Tokenizer::from_gguf_vocabulary`](crate::Tokenizer::from_gguf_vocabulary), which has an
/// example.
#[derive(Debug, Clone, Copy, Default)]
pub struct GgufVocabulary<'a> {
    /// What errors call the file.
    pub file: &'a str,
    /// The kind of tokenizer. Byte-level BPE, which this family has, is `gpt2`.
    pub model: &'a str,
    /// The name of the rule by which texts are split before BPE: `qwen2`, `deepseek-r1-qwen` or `smollm`.
    ///
    /// Without the key, or where it is `default`, the rule is `qwen2`'s if the merges are Qwen2.5's.
    pub pre: Option<&'a str>,
    /// The tokens by their ids, in the byte alphabet of byte-level BPE, padding included.
    pub tokens: &'a [&'a str],
    /// The key `token_type`: a type for each token. 1 is a token of BPE; 2 and 3 (unknown, control) are special added
    /// tokens; 4 (user-defined) are added tokens that are text of an answer; 5 is unused, as are the tokens
    /// `[PAD...]` that pad a vocabulary to the rows of its matrix.
    pub token_types: &'a [i32],
    /// The merges in their order, each two tokens with a space between them.
    pub merges: &'a [&'a str],
    /// The token that begins a text. It is not added unless `add_bos_token` says so.
    pub bos_token_id: Option<u32>,
    /// The token that ends a turn.
    pub eos_token_id: Option<u32>,
    /// The token that pads batches.
    pub padding_token_id: Option<u32>,
    /// The token for what is unknown, which byte-level BPE never writes.
    pub unknown_token_id: Option<u32>,
    /// Whether a text begins with `bos_token_id`; see
    /// [`Tokenizer::encode_prompt`](crate::Tokenizer::encode_prompt).
    pub add_bos_token: bool,
    /// The key `tokenizer.chat_template`.
    pub chat_template: Option<&'a str>,
    /// The keys `tokenizer.chat_template.NAME`, each as its NAME and its value.
    pub named_chat_templates: &'a [(&'a str, &'a str)],
}

impl GgufVocabulary<'_> {
    pub(crate) fn parse(&self) -> Result<(AddedTokens, Pipeline, Config)> {
        if self.model != "gpt2" {
            let help = "files of this family have byte-level BPE, `gpt2`; is it a Qwen2.5 model?";
            let found = format!("`{:.80}`", self.model);
            return Err(Error::unsupported(self.file, "tokenizer.ggml.model", found, help));
        }
        let components = self.components()?;
        for (key, list, most) in [(TOKENS, self.tokens, MAX_TOKENS), (MERGES, self.merges, MAX_MERGES)] {
            if list.len() > most {
                return Err(self.invalid(key, format!("has {} entries, more than {most}", list.len())));
            }
            let bytes = list.iter().fold(0, |bytes: u64, text| bytes.saturating_add(text.len() as u64));
            if bytes > MAX_BYTES {
                let [has, most] = compared(bytes, MAX_BYTES);
                return Err(self.invalid(key, format!("has {has}, more than {most}")));
            }
        }
        let (mut vocab, added) = self.tokens()?;
        let merges = self.merges(&mut vocab, &added)?;
        let model = Model::new(BPE::builder(), vocab, merges).map_err(|_| self.unknown_merge())?;
        Ok((added, Pipeline::new(components, model), self.config()?))
    }

    /// What tokenizer.json of the models that the rule's name stands for does with a text before BPE.
    fn components(&self) -> Result<Components> {
        let pre = match self.pre.unwrap_or("default") {
            "default" if self.merges.len() == QWEN2_MERGES.0 && digest(self.merges) == QWEN2_MERGES.1 => "qwen2",
            pre => pre,
        };
        let mut components = Components::default();
        match pre {
            "qwen2" | "deepseek-r1-qwen" => {
                components.normalizers.push(NormalizerWrapper::NFC(NFC));
                components.splits.extend(LinearSplit::new(QWEN2_PATTERN));
            }
            "smollm" => {
                components.splits.extend(LinearSplit::new(r"\p{N}"));
                components.splits.extend(LinearSplit::new(BYTE_LEVEL_PATTERN));
            }
            _ => {
                let found = match self.pre {
                    Some(pre) => format!("`{pre:.80}`"),
                    None => "a missing name".into(),
                };
                let help = "qwen2, deepseek-r1-qwen and smollm are, and no name where the merges are Qwen2.5's; if the \
                            model splits texts as Qwen2.5 does, write the key anew by `gguf-new-metadata \
                            --pre-tokenizer qwen2 OLD NEW` of the Python package gguf";
                return Err(Error::unsupported(self.file, "tokenizer.ggml.pre", found, help));
            }
        }
        Ok(components)
    }

    /// The tokens of BPE by their texts, and the added tokens.
    fn tokens(&self) -> Result<(AHashMap<String, u32>, AddedTokens)> {
        if self.token_types.len() != self.tokens.len() {
            let (types, tokens) = (self.token_types.len(), self.tokens.len());
            return Err(self.invalid(TYPES, format!("has {types} types for {tokens} tokens")));
        }
        let mut vocab = AHashMap::with_capacity(self.tokens.len());
        let mut added = Vec::new();
        for (id, (&token, &kind)) in (0_u32..).zip(self.tokens.iter().zip(self.token_types)) {
            let invalid = |problem: String| self.invalid(&format!("{TOKENS}[{id}]"), problem);
            check_token(token, id).map_err(invalid)?;
            match kind {
                1..=5 if is_padding(token, kind) => {}
                1 => {
                    if let Some(first) = vocab.insert(token.to_owned(), id) {
                        return Err(invalid(format!("`{token:.40}` is the token {first} already")));
                    }
                }
                2..=4 => {
                    if added.len() == MAX_ADDED_TOKENS {
                        let problem = format!("is the control or user-defined token after {MAX_ADDED_TOKENS} others");
                        return Err(invalid(problem));
                    }
                    let special = kind != 4 && !NOT_SPECIAL.contains(&token);
                    let content = token.to_owned();
                    added.push(AddedToken { id, content, special, lstrip: false, rstrip: false, single_word: false });
                }
                _ => {
                    let help = "1 to 5 are: normal, unknown, control, user-defined, unused";
                    return Err(Error::unsupported(self.file, &format!("{TYPES}[{id}]"), kind, help));
                }
            }
        }
        let added = AddedTokens::new(self.file, |_, token| format!("{TOKENS}[{}]", token.id), added)?;
        Ok((vocab, added))
    }

    /// The merges. Added tokens that BPE makes, too, are put into `vocab`.
    fn merges(&self, vocab: &mut AHashMap<String, u32>, added: &AddedTokens) -> Result<Vec<(String, String)>> {
        let mut longest = vocab.keys().map(String::len).max().unwrap_or(0);
        let mut merges = Vec::with_capacity(self.merges.len());
        let mut merged = String::new();
        for (i, merge) in self.merges.iter().enumerate() {
            let parts = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
            let Some((left, right)) = parts.filter(|(_, right)| !right.contains(' ')) else {
                let problem = format!("`{merge:.80}` is not two tokens with a space between them");
                return Err(self.invalid(&format!("{MERGES}[{i}]"), problem));
            };
            merged.clear();
            merged.extend([left, right]);
            for token in [left, right, &merged] {
                if let Some(added) = added.by_content(token) {
                    vocab.entry(token.to_owned()).or_insert(added.id);
                    longest = longest.max(token.len());
                }
            }
            if merged.len() > longest {
                return Err(self.unknown_merge());
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(merges)
    }

    /// The first merge with a token that is not there. The library finds it while it builds, and does not say which.
    fn unknown_merge(&self) -> Error {
        let tokens = self.tokens.iter().zip(self.token_types).filter(|(token, kind)| !is_padding(token, **kind));
        let known: HashSet<&str> = tokens.map(|(token, _)| *token).collect();
        for (i, merge) in self.merges.iter().enumerate() {
            let merged = merge.replace(' ', "");
            let mut needed = merge.split(' ').chain([merged.as_str()]);
            if let Some(token) = needed.find(|token| !known.contains(token)) {
                let problem = format!("`{merge:.80}` needs `{token:.80}`, which is not in {TOKENS}");
                return self.invalid(&format!("{MERGES}[{i}]"), problem);
            }
        }
        self.invalid(MERGES, "one is longer than every token".into())
    }

    /// The templates and named tokens.
    fn config(&self) -> Result<Config> {
        let mut config = Config::default();
        for (name, key, id) in [
            ("bos_token", "tokenizer.ggml.bos_token_id", self.bos_token_id),
            ("eos_token", "tokenizer.ggml.eos_token_id", self.eos_token_id),
            ("pad_token", "tokenizer.ggml.padding_token_id", self.padding_token_id),
            ("unk_token", "tokenizer.ggml.unknown_token_id", self.unknown_token_id),
        ] {
            let Some(id) = id else { continue };
            let Some((&token, &kind)) = self.tokens.iter().zip(self.token_types).nth(id as usize) else {
                return Err(self.invalid(key, format!("is {id}, and there are {} tokens", self.tokens.len())));
            };
            if !is_padding(token, kind) {
                config.named_tokens.push((name, token.to_owned()));
            } else if name != "pad_token" {
                return Err(self.invalid(key, format!("is {id}, which is padding of the vocabulary")));
            }
        }
        if self.add_bos_token {
            if self.bos_token_id.is_none() {
                let problem = "is true, and there is no tokenizer.ggml.bos_token_id";
                return Err(self.invalid("tokenizer.ggml.add_bos_token", problem.into()));
            }
            config.leading_token_id = self.bos_token_id;
        }
        // The last one of a name counts.
        let default = self.chat_template.map(|source| (DEFAULT_TEMPLATE, source));
        let templates = self.named_chat_templates.iter().copied().chain(default);
        config.templates = templates.map(|(name, source)| (name.to_owned(), source.to_owned())).collect();
        Ok(config)
    }

    fn invalid(&self, key: &str, problem: String) -> Error {
        Error::invalid(self.file, key, problem)
    }
}

/// Whether an id stands for nothing: a row that only pads the vocabulary. Converters before mid 2024 marked these as
/// user-defined, not as unused, and some count them from zero.
fn is_padding(token: &str, kind: i32) -> bool {
    let number = token.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']'));
    let has_pads_name = number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()));
    token.is_empty() || kind == 5 || (kind == 4 && has_pads_name)
}

/// FNV-1a of the merges, each with a line feed after it.
fn digest(merges: &[&str]) -> u64 {
    let bytes = merges.iter().flat_map(|merge| merge.bytes().chain([b'\n']));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
