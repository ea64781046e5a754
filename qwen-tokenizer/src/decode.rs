//! Ids to text: tokens to bytes, and bytes to text without ever splitting a character.
//!
//! A token of byte-level BPE is a string of bytes and may end in the middle of a character. Decoding a whole list
//! replaces what is not UTF-8 by U+FFFD, one for each maximal invalid stretch. Decoding piece by piece gives the
//! same text: bytes which may still become a character wait for the next token.

use std::sync::Arc;

use crate::codec::Codec;

/// Turns ids into text one at a time; all pieces together are exactly what decoding the whole list gives.
///
/// Made by [`Tokenizer::decode_stream`](crate::Tokenizer::decode_stream). It owns what it needs, so it can move to
/// another thread and outlive the tokenizer it came from.
///
/// ```
/// # fn main() -> Result<(), qwen_tokenizer::Error> {
/// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(include_bytes!("../tests/data/tokenizer.json"), None)?;
/// let ids = tokenizer.encode("né 👋", false)?;
/// let mut stream = tokenizer.decode_stream(true);
/// let mut text = String::new();
/// for id in ids {
///     // `None` while a character is still incomplete.
///     text.extend(stream.push(id));
/// }
/// text.extend(stream.finish());
/// assert_eq!(text, "né 👋");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DecodeStream {
    inner: Arc<Codec>,
    skip_special: bool,
    /// The beginning of a character: at most three bytes between calls.
    pending: Vec<u8>,
}

impl DecodeStream {
    pub(crate) fn new(inner: Arc<Codec>, skip_special: bool) -> Self {
        Self { inner, skip_special, pending: Vec::new() }
    }

    /// Takes the next id and gives the text that is now certain, if there is any.
    ///
    /// Ids without a token (the padding rows of the vocabulary) and, if asked for, special tokens give nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.inner.push_bytes(id, self.skip_special, &mut self.pending);
        let mut text = String::new();
        let used = decode_utf8(&self.pending, &mut text);
        self.pending.drain(..used);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text: an incomplete last character becomes U+FFFD, as in a whole decode.
    ///
    /// Afterwards the stream is as new.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }

    /// Whether bytes of an incomplete character are waiting.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl std::fmt::Debug for DecodeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecodeStream")
            .field("skip_special", &self.skip_special)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

/// Appends the text of `bytes` to `text` and returns how many bytes it took: all but an incomplete last character.
fn decode_utf8(bytes: &[u8], text: &mut String) -> usize {
    let mut rest = bytes;
    loop {
        let error = match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return bytes.len();
            }
            Err(error) => error,
        };
        let (valid, after) = rest.split_at(error.valid_up_to());
        text.push_str(&String::from_utf8_lossy(valid));
        match error.error_len() {
            Some(invalid) => {
                text.push(char::REPLACEMENT_CHARACTER);
                rest = after.get(invalid..).unwrap_or_default();
            }
            None => return bytes.len() - after.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_character_waits_and_a_broken_one_does_not() {
        let mut text = String::new();
        assert_eq!(decode_utf8(b"a\xff\xf0\x9f\x91", &mut text), 2);
        assert_eq!(text, "a\u{fffd}");
    }
}
