//! Words of a request as token ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use qwen_tokenizer::Tokenizer;

use crate::error::Result;

/// How the tokenizer writes a word: at the beginning of a text, and after a space.
///
/// # Errors
/// For an empty word.
pub(crate) fn spellings(word: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let trimmed = word.trim_start();
    if trimmed.is_empty() {
        return Err(qwen_core::Error::argument("bad_words", "must not have an empty word").into());
    }
    let mut spellings = vec![tokenizer.encode(trimmed, false)?, tokenizer.encode(&format!(" {trimmed}"), false)?];
    spellings.dedup();
    Ok(spellings)
}

/// Tokens that contain a text, for each text that was asked for: finding them takes a look at the whole vocabulary.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    found: Mutex<HashMap<String, Arc<[Vec<u32>]>>>,
}

impl Breakers {
    /// The most texts that are remembered.
    const MAX: usize = 64;

    /// Every token that contains `text`, and the sequence of tokens that `text` is, if these are several.
    ///
    /// # Errors
    /// For an empty text.
    pub(crate) fn of(&self, text: &str, tokenizer: &Tokenizer) -> Result<Arc<[Vec<u32>]>> {
        if text.is_empty() {
            return Err(qwen_core::Error::argument("dry.sequence_breakers", "must not have an empty text").into());
        }
        if let Some(found) = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(text) {
            return Ok(found.clone());
        }
        let contains = |id: &u32| tokenizer.token_bytes(*id).windows(text.len()).any(|part| part == text.as_bytes());
        let mut breakers: Vec<Vec<u32>> = (0..tokenizer.num_ids() as u32).filter(contains).map(|id| vec![id]).collect();
        breakers.extend(Some(tokenizer.encode(text, false)?).filter(|ids| ids.len() > 1));
        let breakers: Arc<[Vec<u32>]> = breakers.into();
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < Self::MAX {
            found.insert(text.into(), breakers.clone());
        }
        Ok(breakers)
    }
}
