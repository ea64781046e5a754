//! The vocabulary of a model as `llguidance` wants it: the bytes of each id, and text to ids.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use qwen_tokenizer::Tokenizer;

/// A tokenizer with a tree of its tokens.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl Vocabulary {
    /// The vocabulary, and the id that stands for the end of a text in it.
    ///
    /// # Errors
    /// Without a token that could end a text.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<(Self, u32), String> {
        let num_ids = tokenizer.num_ids() as u32;
        let mut words: Vec<Vec<u8>> = (0..num_ids).map(|id| tokenizer.token_bytes(id)).collect();
        // Control tokens are no text, whatever their names are: a mark that no text has tells them apart.
        for id in tokenizer.control_ids() {
            if let (Some(word), Some(name)) = (words.get_mut(id as usize), tokenizer.id_to_token(id)) {
                *word = [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
            }
        }
        let end = tokenizer.eos_token_id().or_else(|| tokenizer.control_ids().next());
        let end = end.filter(|end| *end < num_ids);
        let end = end.ok_or("the tokenizer has no control token, by which a text could end")?;
        let trie = TokTrie::from(&TokRxInfo::new(num_ids, end), &words);
        Ok((Vocabulary { tokenizer: tokenizer.clone(), trie }, end))
    }

    pub(super) fn num_ids(&self) -> u32 {
        self.trie.vocab_size() as u32
    }

    pub(super) fn shared(self) -> TokEnv {
        Arc::new(self)
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| {
            // The tokenizer may write a text in another form of Unicode.
            let ids = self.tokenizer.encode(text, false).ok();
            let ids = ids.filter(|ids| self.trie.decode_raw(ids) == text.as_bytes());
            ids.unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        };
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}
