//! Added tokens that files beside tokenizer.json declare: `added_tokens_decoder` and the names of special tokens in
//! tokenizer_config.json, and added_tokens.json of older folders.
//!
//! Here they are read and put beside the tokens of tokenizer.json, with the ids that transformers gives them. How added
//! tokens are found in a text is in `added`.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::added::{AddedToken, MAX_ADDED_TOKENS};
use crate::bounded::BoundedMap;
use crate::error::{Error, Result};
use crate::vocabulary::check_token;

pub(crate) const ADDED_TOKENS_JSON: &str = "added_tokens.json";
const DECODER: &str = "added_tokens_decoder";

/// A token as a file declares it.
#[derive(Debug)]
pub(crate) struct DeclaredToken {
    /// The file's id. Ids of tokenizer.json have precedence.
    pub(crate) id: Option<u32>,
    pub(crate) token: AddedToken,
}

impl DeclaredToken {
    /// A token of which only the text is known.
    pub(crate) fn named(content: &str, special: bool) -> Self {
        // As transformers has it where a file does not say.
        let token = AddedToken { normalized: !special, ..AddedToken::new(0, content, special) };
        Self { id: None, token }
    }
}

/// `added_tokens_decoder`: ids as keys, tokens with their flags as values.
pub(crate) fn of_config(file: &str, json: Option<&RawValue>) -> Result<Vec<DeclaredToken>> {
    #[derive(Deserialize)]
    struct Entry {
        content: String,
        #[serde(default)]
        special: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        #[serde(default)]
        single_word: bool,
        normalized: Option<bool>,
    }
    let Some(json) = json.map(RawValue::get).filter(|json| *json != "null") else { return Ok(Vec::new()) };
    let entries: BoundedMap<Entry, MAX_ADDED_TOKENS> =
        serde_json::from_str(json).map_err(|e| Error::invalid(file, DECODER, e))?;
    let token = |(id, entry): (String, Entry)| {
        let key = format!("{DECODER}.{id:.20}");
        let id: u32 = id.parse().map_err(|_| Error::invalid(file, &key, "expected an id as the key"))?;
        let Entry { content, special, lstrip, rstrip, single_word, normalized } = entry;
        check_token(&content, id).map_err(|problem| Error::invalid(file, &key, problem))?;
        let normalized = normalized.unwrap_or(!special);
        let token = AddedToken { lstrip, rstrip, single_word, normalized, ..AddedToken::new(id, &content, special) };
        Ok(DeclaredToken { id: Some(id), token })
    };
    in_order(entries.0.into_iter().map(token))
}

/// added_tokens.json: texts as keys, ids as values.
pub(crate) fn of_older_file(json: &[u8]) -> Result<Vec<DeclaredToken>> {
    let entries: BoundedMap<u32, MAX_ADDED_TOKENS> =
        serde_json::from_slice(json).map_err(|e| Error::invalid(ADDED_TOKENS_JSON, "its entries", e))?;
    let token = |(content, id): (String, u32)| {
        check_token(&content, id).map_err(|problem| Error::invalid(ADDED_TOKENS_JSON, "its entries", problem))?;
        // Its texts that look like control tokens are; the file does not say.
        let special = content.starts_with("<|") && content.ends_with("|>");
        Ok(DeclaredToken { id: Some(id), ..DeclaredToken::named(&content, special) })
    };
    let tokens = in_order(entries.0.into_iter().map(token))?;
    // What tokenizer.json says of a token counts more than what this file leaves to be guessed.
    Ok(tokens.into_iter().map(|declared| DeclaredToken { id: None, ..declared }).collect())
}

/// In the order of their ids, in which new ones are given out.
fn in_order(tokens: impl Iterator<Item = Result<DeclaredToken>>) -> Result<Vec<DeclaredToken>> {
    let mut tokens = tokens.collect::<Result<Vec<_>>>()?;
    tokens.sort_by_key(|declared| declared.id);
    Ok(tokens)
}

/// `tokens` of tokenizer.json and those that are only declared, as transformers adds them: one that is there takes the
/// declared flags, one that BPE has takes its id, and others take the ids behind the highest one.
pub(crate) fn with_declared(
    mut tokens: Vec<AddedToken>,
    declared: Vec<DeclaredToken>,
    vocab_id: impl Fn(&str) -> Option<u32>,
    vocab_size: usize,
) -> Vec<AddedToken> {
    for DeclaredToken { id: declared_id, token } in declared {
        if token.content.is_empty() {
            continue;
        }
        if let Some(known) = tokens.iter_mut().find(|known| known.content == token.content) {
            if declared_id.is_some() {
                *known = AddedToken { id: known.id, ..token };
            }
            continue;
        }
        let next = || {
            let highest = tokens.iter().map(|token| token.id as usize + 1).max().unwrap_or(0);
            u32::try_from(highest.max(vocab_size)).unwrap_or(u32::MAX)
        };
        let id = vocab_id(&token.content).unwrap_or_else(next);
        tokens.push(AddedToken { id, ..token });
    }
    tokens
}
