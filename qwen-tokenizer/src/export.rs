//! The way back from `gguf`: the vocabulary of a folder in the form that GGUF files carry it in.
//!
//! A GGUF file names the rule by which texts are split, and has no place for what else tokenizer.json can say. What it
//! would lose is refused here, so that a file never gives other ids than the folder that it was made of (but where a mark
//! joins with the last letter of a word that was added). Writing the file is not done here: whoever does takes the lists.

use std::borrow::Cow;
use std::path::Path;

use tokenizers::normalizers::NormalizerWrapper;

use crate::added::{AddedToken, AddedTokens};
use crate::components::Components;
use crate::config::{Config, DEFAULT_TEMPLATE};
use crate::error::{Error, Result, TOKENIZER_JSON};
use crate::file::{self, TokenizerJson};
use crate::gguf::{GgufVocabulary, NOT_SPECIAL};
use crate::pipeline::normalized;
use crate::split::{BYTE_LEVEL_PATTERN, QWEN2_PATTERN};
use crate::vocabulary::MAX_TOKENS;

/// Types of tokens as GGUF files have them.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// What a GGUF file says of its tokenizer, made of a folder's files: the owned form of [`GgufVocabulary`], whose fields
/// have the same names and meanings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OwnedGgufVocabulary {
    /// The kind of tokenizer, `gpt2`.
    pub model: &'static str,
    /// The name of the rule by which texts are split.
    pub pre: &'static str,
    /// The tokens by their ids, `[PAD...]` where an id stands for none.
    pub tokens: Vec<String>,
    /// A type for each token.
    pub token_types: Vec<i32>,
    /// The merges in their order, each two tokens with a space between them.
    pub merges: Vec<String>,
    /// The token that begins a text, if tokenizer_config.json names one.
    pub bos_token_id: Option<u32>,
    /// The token that ends a turn, if tokenizer_config.json names one.
    pub eos_token_id: Option<u32>,
    /// The token that pads batches, if tokenizer_config.json names one.
    pub padding_token_id: Option<u32>,
    /// The chat template.
    pub chat_template: Option<String>,
    /// Other templates, such as the one for chats with tools, by their names.
    pub named_chat_templates: Vec<(String, String)>,
}

impl OwnedGgufVocabulary {
    /// The vocabulary of the tokenizer in `folder`, padded to `rows` ids: the rows of the model's embedding table.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    /// use qwen_tokenizer::OwnedGgufVocabulary;
    ///
    /// let vocabulary = OwnedGgufVocabulary::from_dir(folder, 384)?;
    /// assert_eq!((vocabulary.pre, vocabulary.tokens.len()), ("qwen2", 384));
    /// assert_eq!(vocabulary.tokens[383], "[PAD383]");
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_dir`](crate::Tokenizer::from_dir), and [`Error::Unsupported`] for what a GGUF file
    /// cannot carry: another way of splitting than `qwen2` and `smollm` stand for, `ignore_merges`, added tokens that
    /// swallow white space, more ids than `rows`.
    pub fn from_dir(folder: impl AsRef<Path>, rows: usize) -> Result<Self> {
        let folder = folder.as_ref();
        let json = file::read_tokenizer(&folder.join(TOKENIZER_JSON))?;
        let mut file = TokenizerJson::parse(&json)?;
        let tokens = file.take_added();
        let components = file.components()?;
        let pre = rule(&components)?;
        if file.model.ignores_merges() {
            let help = "a GGUF file of this family cannot say so";
            return Err(Error::unsupported(TOKENIZER_JSON, "model.ignore_merges", true, help));
        }
        let (vocab, merges) = file.model.take_lists()?;
        let mut config = Config::from_dir(folder)?;
        let declared = std::mem::take(&mut config.declared);
        let normal = |text: &str| normalized(&components.normalizers, text).map(Cow::into_owned);
        let added = file::added_tokens(tokens, declared, |token| vocab.get(token).copied(), vocab.len(), normal)?;
        let mut vocabulary = OwnedGgufVocabulary {
            model: "gpt2",
            pre,
            merges: merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect(),
            ..Self::default()
        };
        vocabulary.set_tokens(vocab.into_iter(), &added, rows)?;
        vocabulary.set_config(config);
        vocabulary.check()?;
        Ok(vocabulary)
    }

    /// Fill in the tokens by their ids.
    fn set_tokens(
        &mut self,
        vocab: impl Iterator<Item = (String, u32)>,
        added: &AddedTokens,
        rows: usize,
    ) -> Result<()> {
        if rows > MAX_TOKENS {
            let help = "it is more than the vocabularies that are read";
            return Err(Error::unsupported(TOKENIZER_JSON, "model.vocab", format!("{rows} ids"), help));
        }
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
        let added = added.iter().map(|token| Ok((token.content.clone(), token.id, kind(token)?)));
        // An added token that BPE has too is an added token.
        for entry in vocab.map(|(token, id)| Ok((token, id, NORMAL))).chain(added) {
            let (token, id, kind) = entry?;
            match tokens.get_mut(id as usize) {
                Some(slot) => *slot = Some((token, kind)),
                None => {
                    let found = format!("the id {id} of `{token:.40}` in a model of {rows} rows");
                    let help = "each token needs a row of the embedding table; do tokenizer and model belong together?";
                    return Err(Error::unsupported(TOKENIZER_JSON, "model.vocab", found, help));
                }
            }
        }
        let padding = |id: usize| (format!("[PAD{id}]"), UNUSED);
        let all = tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or_else(|| padding(id)));
        (self.tokens, self.token_types) = all.unzip();
        Ok(())
    }

    /// Take over the named tokens and the templates.
    fn set_config(&mut self, config: Config) {
        for (name, content) in &config.named_tokens {
            let id = self.tokens.iter().position(|token| token == content).and_then(|id| u32::try_from(id).ok());
            match *name {
                "bos_token" => self.bos_token_id = id,
                "eos_token" => self.eos_token_id = id,
                "pad_token" => self.padding_token_id = id,
                _ => {}
            }
        }
        for (name, source) in config.templates {
            match name == DEFAULT_TEMPLATE {
                true => self.chat_template = Some(source),
                false => self.named_chat_templates.push((name, source)),
            }
        }
    }

    /// What is written has to be read again.
    fn check(&self) -> Result<()> {
        let tokens: Vec<&str> = self.tokens.iter().map(String::as_str).collect();
        let merges: Vec<&str> = self.merges.iter().map(String::as_str).collect();
        let vocabulary = GgufVocabulary {
            file: TOKENIZER_JSON,
            model: self.model,
            pre: Some(self.pre),
            tokens: &tokens,
            token_types: &self.token_types,
            merges: &merges,
            bos_token_id: self.bos_token_id,
            eos_token_id: self.eos_token_id,
            padding_token_id: self.padding_token_id,
            ..Default::default()
        };
        vocabulary.parse().map(drop)
    }
}

/// The name of the rule that these components spell out.
fn rule(components: &Components) -> Result<&'static str> {
    let splits: Vec<Option<&str>> = components.splits.iter().map(|split| split.isolated_pattern()).collect();
    match (components.normalizers.as_slice(), splits.as_slice()) {
        ([NormalizerWrapper::NFC(_)], [Some(QWEN2_PATTERN)]) => Ok("qwen2"),
        ([], [Some(r"\p{N}"), Some(BYTE_LEVEL_PATTERN)]) => Ok("smollm"),
        _ => {
            let found = "a rule of splitting or normalising that no name in a GGUF file stands for";
            let help = "those of Qwen2.5 (`qwen2`) and of SmolLM (`smollm`) are";
            Err(Error::unsupported(TOKENIZER_JSON, "pre_tokenizer", found, help))
        }
    }
}

/// The type of an added token.
fn kind(token: &AddedToken) -> Result<i32> {
    let rule = match token {
        AddedToken { lstrip: true, .. } | AddedToken { rstrip: true, .. } => Some("swallows white space beside it"),
        AddedToken { single_word: true, .. } => Some("stands between words alone"),
        // The normal form of ASCII is itself, whatever stands around it but for marks that join with its last letter.
        AddedToken { normalized: true, content, .. } if !content.is_ascii() => Some("is one in other forms, too"),
        _ => None,
    };
    if let Some(rule) = rule {
        let found = format!("`{:.40}`, which {rule},", token.content);
        return Err(Error::unsupported(TOKENIZER_JSON, "added_tokens", found, "a GGUF file cannot say so"));
    }
    // Readers look for these among the control tokens, though their text belongs to an answer.
    let is_control = token.special || NOT_SPECIAL.contains(&token.content.as_str());
    Ok(if is_control { CONTROL } else { USER_DEFINED })
}
