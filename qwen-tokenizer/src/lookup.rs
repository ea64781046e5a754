//! Single tokens of a tokenizer: by text, by id, by role.

use tokenizers::Model;

use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The id of a token by its text, control token or not. A token of the vocabulary is written in the byte
    /// alphabet of byte-level BPE, where a space is `Ġ`.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.token_to_id("!"), Some(33));
    /// assert_eq!(tokenizer.token_to_id("nonsense"), None);
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, the reverse of [`token_to_id`](Self::token_to_id).
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.id_to_token(33).as_deref(), Some("!"));
    /// assert_eq!(tokenizer.id_to_token(u32::MAX), None);
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match self.inner.added.by_id(id) {
            Some(token) => Some(token.content.clone()),
            None => self.inner.pipeline.model().id_to_token(id),
        }
    }

    /// The bytes an id stands for; none for an id without a token.
    ///
    /// ```
    /// # fn main() -> Result<(), qwen_tokenizer::Error> {
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(include_bytes!("../tests/data/tokenizer.json"), None)?;
    /// let id = tokenizer.token_to_id("Ġ").unwrap();
    /// assert_eq!(tokenizer.token_bytes(id), b" ");
    /// # Ok(())
    /// # }
    /// ```
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.inner.push_bytes(id, false, &mut bytes);
        bytes
    }

    /// The number of tokens of BPE's vocabulary, without the added ones.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.len(), tokenizer.vocab_size() + tokenizer.control_ids().count());
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn vocab_size(&self) -> usize {
        self.inner.pipeline.model().get_vocab_size()
    }

    /// The number of all tokens. A model's vocabulary may be larger: its last rows are padding. Where ids have gaps, it
    /// says nothing about the highest id; see [`num_ids`](Self::num_ids).
    #[expect(clippy::len_without_is_empty, reason = "a tokenizer is not a container")]
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.len(), 357);
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// One more than the highest id: as many rows of a model's vocabulary may be tokens.
    ///
    /// Ids below it need not all be tokens. One in a gap stands for nothing: it decodes to no text, and is no error.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.num_ids(), tokenizer.len()); // no gaps here
    /// assert_eq!(tokenizer.decode(&[tokenizer.num_ids() as u32], false), "");
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn num_ids(&self) -> usize {
        self.inner.num_ids
    }

    /// Whether an id is a token that `skip_special` leaves out.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// let call = tokenizer.token_to_id("<tool_call>").unwrap();
    /// assert!(!tokenizer.is_special(call)); // a control token, but text of an answer all the same
    /// assert!(tokenizer.is_special(tokenizer.eos_token_id().unwrap()));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.added.by_id(id).is_some_and(|token| token.special)
    }

    /// The ids of all added tokens, `special` or not: what only [`encode`](Self::encode) with `parse_special`, or a
    /// template, makes.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// let call = tokenizer.token_to_id("<tool_call>").unwrap();
    /// assert!(tokenizer.control_ids().any(|id| id == call));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn control_ids(&self) -> impl Iterator<Item = u32> {
        self.inner.added.iter().map(|token| token.id)
    }

    /// The id of tokenizer_config.json's `eos_token`, or a GGUF file's `eos_token_id`, with which this checkpoint's
    /// template ends a turn.
    ///
    /// generation_config.json may name further ids that end an answer; stop at any of them.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.eos_token_id(), tokenizer.token_to_id("<|im_end|>"));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn eos_token_id(&self) -> Option<u32> {
        self.named_token_id("eos_token")
    }

    /// The id of tokenizer_config.json's `pad_token`, or a GGUF file's `padding_token_id`.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.pad_token_id(), tokenizer.token_to_id("<|endoftext|>"));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn pad_token_id(&self) -> Option<u32> {
        self.named_token_id("pad_token")
    }

    fn named_token_id(&self, name: &str) -> Option<u32> {
        let (_, token) = self.chats.named_tokens.iter().find(|(named, _)| *named == name)?;
        self.token_to_id(token)
    }
}
