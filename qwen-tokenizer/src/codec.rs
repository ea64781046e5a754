//! Text to ids and ids to bytes with one vocabulary: what the tokenizer and its decode streams share.
//!
//! Chats, templates and files are not known here.

use std::ops::Range;

use tokenizers::Model;

use crate::added::AddedTokens;
use crate::alphabet::push_token_bytes;
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;

/// What decoding and encoding need, shared with decode streams.
pub(crate) struct Codec {
    pub(crate) added: AddedTokens,
    pub(crate) pipeline: Pipeline,
    pub(crate) len: usize,
    pub(crate) num_ids: usize,
    /// The most bytes of text that one id stands for; `None` where there is no such bound.
    pub(crate) most_bytes: Option<usize>,
}

impl Codec {
    /// An error if a text of `bytes` bytes has more than `limit` ids whatever it says.
    pub(crate) fn check_bytes(&self, bytes: usize, limit: usize) -> Result<()> {
        match self.most_bytes.and_then(|most| most.checked_mul(limit)) {
            Some(most) if bytes > most => Err(Error::TooManyTokens { limit, bytes: Some(bytes) }),
            _ => Ok(()),
        }
    }

    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        let added = self.added.by_content(token).map(|token| token.id);
        added.or_else(|| self.pipeline.model().token_to_id(token))
    }

    /// The ids of a text in which control tokens are text like any other.
    pub(crate) fn encode_plain(&self, text: &str, limit: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.pipeline.encode_into(&self.pipeline.normalized(text)?, limit, &mut ids)?;
        Ok(ids)
    }

    /// The ids of a text in which control tokens are control tokens, but for those with a character at one of the places
    /// `guarded`, which are in order.
    pub(crate) fn encode(&self, text: &str, guarded: &[usize], limit: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for (range, token) in self.added.pieces(text, guarded) {
            match token {
                Some(token) => push(&mut ids, token.id, limit)?,
                None => self.encode_between(text, range, guarded, limit, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// Appends the ids of a stretch between control tokens: its normal form may have some, too.
    fn encode_between(
        &self,
        text: &str,
        range: Range<usize>,
        guarded: &[usize],
        limit: usize,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let stretch = text.get(range.clone()).unwrap_or_default();
        let normal = self.pipeline.normalized(stretch)?;
        if !self.added.any_normalized() {
            return self.pipeline.encode_into(&normal, limit, ids);
        }
        let guarded: Vec<usize> = guarded.iter().filter(|at| range.contains(at)).map(|at| at - range.start).collect();
        let guarded = if guarded.is_empty() { guarded } else { self.pipeline.places_in_normal(stretch, &guarded)? };
        for (range, token) in self.added.normal_pieces(&normal, &guarded) {
            match token {
                Some(token) => push(ids, token.id, limit)?,
                None => self.pipeline.encode_into(normal.get(range).unwrap_or_default(), limit, ids)?,
            }
        }
        Ok(())
    }

    /// Where in `text` a control token begins, or may begin whose end follows behind the text; in order.
    pub(crate) fn starts(&self, text: &str) -> Vec<usize> {
        let mut starts = self.added.starts(text);
        if self.added.any_normalized()
            && let Ok(normal) = self.pipeline.normalized(text)
            && let Ok(more) = self.pipeline.places_in_text(text, &self.added.normal_starts(&normal))
        {
            starts.extend(more);
            starts.sort_unstable();
            starts.dedup();
        }
        starts
    }

    /// Appends the bytes of a token.
    pub(crate) fn push_bytes(&self, id: u32, skip_special: bool, bytes: &mut Vec<u8>) {
        match self.added.by_id(id) {
            Some(token) if token.special && skip_special => {}
            Some(token) => push_token_bytes(token.text(), bytes),
            None => {
                if let Some(token) = self.pipeline.model().id_to_token(id) {
                    push_token_bytes(&token, bytes);
                }
            }
        }
    }
}

/// Appends the id of a control token.
fn push(ids: &mut Vec<u32>, id: u32, limit: usize) -> Result<()> {
    if ids.len() >= limit {
        return Err(Error::TooManyTokens { limit, bytes: None });
    }
    ids.push(id);
    Ok(())
}
