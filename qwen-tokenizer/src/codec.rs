//! Text to ids and ids to bytes with one vocabulary: what the tokenizer and its decode streams share.
//!
//! Chats, templates and files are not known here.

use tokenizers::Model;

use crate::added::{AddedTokens, Segment};
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

    pub(crate) fn encode_segments(&self, segments: &[Segment<'_>], limit: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for (i, segment) in segments.iter().enumerate() {
            match segment {
                Segment::Token(_) if ids.len() >= limit => return Err(Error::TooManyTokens { limit, bytes: None }),
                Segment::Token(token) => ids.push(token.id),
                Segment::Text(text) => {
                    let after = i.checked_sub(1).and_then(|i| segments.get(i));
                    let before = segments.get(i + 1);
                    let mut text = *text;
                    if matches!(after, Some(Segment::Token(token)) if token.rstrip) {
                        text = text.trim_start();
                    }
                    if matches!(before, Some(Segment::Token(token)) if token.lstrip) {
                        text = text.trim_end();
                    }
                    self.pipeline.encode_into(text, limit, &mut ids)?;
                }
            }
        }
        Ok(ids)
    }

    /// Appends the bytes of a token.
    pub(crate) fn push_bytes(&self, id: u32, skip_special: bool, bytes: &mut Vec<u8>) {
        match self.added.by_id(id) {
            Some(token) if token.special && skip_special => {}
            Some(token) => push_token_bytes(&token.content, bytes),
            None => {
                if let Some(token) = self.pipeline.model().id_to_token(id) {
                    push_token_bytes(&token, bytes);
                }
            }
        }
    }
}
