//! Words of a request as token ids.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use qwen_core::engine::sampling::SequenceBreakers;
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

/// Tokens that contain one of several texts, for each list of texts that was asked for: finding them takes a look at the
/// whole vocabulary.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    found: Mutex<HashMap<Vec<String>, SequenceBreakers>>,
}

impl Breakers {
    /// The most lists that are remembered.
    const MAX: usize = 64;

    /// Every token that contains one of `texts`, and the sequence of tokens that each of them is, if these are several.
    ///
    /// # Errors
    /// For an empty text.
    pub(crate) fn of(&self, texts: &[String], tokenizer: &Tokenizer) -> Result<SequenceBreakers> {
        if texts.iter().any(String::is_empty) {
            return Err(qwen_core::Error::argument("dry.sequence_breakers", "must not have an empty text").into());
        }
        if let Some(found) = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(texts) {
            return Ok(found.clone());
        }
        let mut breakers: Vec<Vec<u32>> = Vec::new();
        for text in texts {
            let contains =
                |id: &u32| tokenizer.token_bytes(*id).windows(text.len()).any(|part| part == text.as_bytes());
            breakers.extend((0..tokenizer.num_ids() as u32).filter(contains).map(|id| vec![id]));
            breakers.extend(Some(tokenizer.encode(text, false)?).filter(|ids| ids.len() > 1));
        }
        let breakers = SequenceBreakers::from(breakers);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < Self::MAX {
            found.insert(texts.into(), breakers.clone());
        }
        Ok(breakers)
    }
}
