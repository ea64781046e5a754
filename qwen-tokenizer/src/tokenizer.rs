//! The tokenizer: one value that holds a checkpoint's vocabulary, control tokens and chat templates.
//!
//! Loading, encoding and decoding are here; asking for single tokens is in `lookup`.

use std::path::Path;
use std::sync::Arc;

use tokenizers::Model;

use crate::added::AddedTokens;
use crate::chat::{self, EncodedChat, Room};
use crate::codec::Codec;
use crate::components::Around;
use crate::config::{CHAT_TEMPLATE_JINJA, CHAT_TEMPLATE_JSON, Config, TOKENIZER_CONFIG_JSON, TOOL_USE_TEMPLATE};
use crate::decode::DecodeStream;
use crate::error::{Error, Result, TOKENIZER_JSON};
use crate::gguf::GgufVocabulary;
use crate::pipeline::{MOST_SHRINKING, Pipeline};
use crate::template::{ChatInput, ChatTemplate};
use crate::{file, older};

/// Text to ids and back, for one checkpoint.
///
/// Cloning is cheap: clones share the vocabulary. It can be used from many threads at once.
///
/// ```
/// # fn main() -> Result<(), qwen_tokenizer::Error> {
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
/// use qwen_tokenizer::Tokenizer;
///
/// let tokenizer = Tokenizer::from_dir(folder)?;
/// let ids = tokenizer.encode("Hello, world!<|im_end|>", true)?;
/// assert_eq!(ids.last(), tokenizer.eos_token_id().as_ref());
/// assert_eq!(tokenizer.decode(&ids, true), "Hello, world!");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    pub(crate) inner: Arc<Codec>,
    pub(crate) chats: Arc<Chats>,
}

/// What chats need.
pub(crate) struct Chats {
    default: Option<ChatTemplate>,
    tool_use: Option<ChatTemplate>,
    pub(crate) named_tokens: Vec<(&'static str, String)>,
    /// Where templates were looked for.
    looked_for: String,
}

impl Tokenizer {
    /// Loads the tokenizer of a checkpoint's folder.
    ///
    /// tokenizer.json must be there, or vocab.json and merges.txt, as older folders have it. tokenizer_config.json and
    /// chat_template.jinja may be: a tokenizer without them encodes and decodes, and says so when asked for a chat.
    pub fn from_dir(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let looked_for = [TOKENIZER_CONFIG_JSON, CHAT_TEMPLATE_JINJA, CHAT_TEMPLATE_JSON]
            .map(|name| folder.join(name).display().to_string())
            .join(", ");
        let mut config = Config::from_dir(folder)?;
        let declared = std::mem::take(&mut config.declared);
        let path = folder.join(TOKENIZER_JSON);
        let (added, pipeline) = match file::read(&path, file::MAX_BYTES)? {
            Some(json) => file::parse(&json, declared)?,
            None => older::read(folder, declared)?.ok_or_else(|| file::missing(&path))?,
        };
        Self::new(added, pipeline, config, looked_for)
    }

    /// Whether a folder has the files that [`from_dir`](Self::from_dir) needs, be they links that lead to nothing.
    ///
    /// ```
    /// use qwen_tokenizer::Tokenizer;
    /// assert!(Tokenizer::is_in(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")));
    /// assert!(!Tokenizer::is_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    /// ```
    pub fn is_in(folder: impl AsRef<Path>) -> bool {
        let has = |name: &str| folder.as_ref().join(name).symlink_metadata().is_ok();
        has(TOKENIZER_JSON) || (has(older::VOCAB_JSON) && has(older::MERGES_TXT))
    }

    /// Loads a tokenizer from the bytes of tokenizer.json and, for chats, of tokenizer_config.json.
    ///
    /// ```
    /// # fn main() -> Result<(), qwen_tokenizer::Error> {
    /// # let tokenizer_json = include_bytes!("../tests/data/tokenizer.json");
    /// use qwen_tokenizer::Tokenizer;
    /// let tokenizer = Tokenizer::from_bytes(tokenizer_json, None)?;
    /// assert_eq!(tokenizer.decode(&tokenizer.encode("Hi", false)?, false), "Hi");
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config_json: Option<&[u8]>) -> Result<Self> {
        let (mut config, looked_for) = match tokenizer_config_json {
            Some(json) => (Config::from_bytes(json)?, "`chat_template` in the given tokenizer_config.json"),
            None => (Config::default(), "no tokenizer_config.json was given"),
        };
        let (added, pipeline) = file::parse(tokenizer_json, std::mem::take(&mut config.declared))?;
        Self::new(added, pipeline, config, looked_for.into())
    }

    /// Takes the vocabulary that a GGUF file carries. Ids and texts are those of the same model's tokenizer.json.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another model than byte-level BPE and for an unknown rule of splitting,
    /// [`Error::Invalid`] for damaged lists; both name the file, the key and the index. Errors of the chat templates
    /// are those of [`with_chat_template`](Self::with_chat_template).
    ///
    /// ```
    /// use qwen_tokenizer::{GgufVocabulary, Tokenizer};
    ///
    /// let tokenizer = Tokenizer::from_gguf_vocabulary(&GgufVocabulary {
    ///     file: "model.gguf",
    ///     model: "gpt2",
    ///     pre: Some("qwen2"),
    ///     tokens: &["h", "i", "Ġ", "hi", "<|im_end|>", "[PAD5]"],
    ///     token_types: &[1, 1, 1, 1, 3, 5],
    ///     merges: &["h i"],
    ///     eos_token_id: Some(4),
    ///     ..Default::default()
    /// })?;
    /// assert_eq!(tokenizer.encode("hi hi<|im_end|>", true)?, [3, 2, 3, 4]);
    /// assert_eq!((tokenizer.eos_token_id(), tokenizer.num_ids()), (Some(4), 5)); // padding is no token
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn from_gguf_vocabulary(vocabulary: &GgufVocabulary<'_>) -> Result<Self> {
        let (added, pipeline, config) = vocabulary.parse()?;
        Self::new(added, pipeline, config, format!("tokenizer.chat_template in {}", vocabulary.file))
    }

    fn new(added: AddedTokens, pipeline: Pipeline, config: Config, looked_for: String) -> Result<Self> {
        let model = pipeline.model();
        let in_vocab = |content: &str| model.token_to_id(content).is_some();
        let highest = pipeline.highest_id().into_iter().chain(added.iter().map(|token| token.id)).max();
        let num_ids = highest.map_or(0, |id| id as usize + 1);
        let longest = added.longest() * if added.any_normalized() { MOST_SHRINKING } else { 1 };
        let most_bytes = pipeline.most_bytes().filter(|_| !added.any_strips()).map(|bytes| bytes.max(longest));
        let len = model.get_vocab_size() + added.iter().filter(|token| !in_vocab(&token.content)).count();
        let mut chats = Chats { default: None, tool_use: None, named_tokens: config.named_tokens, looked_for };
        for (name, source) in &config.templates {
            let slot = match name.as_str() {
                TOOL_USE_TEMPLATE => &mut chats.tool_use,
                crate::config::DEFAULT_TEMPLATE => &mut chats.default,
                _ => continue,
            };
            *slot = Some(ChatTemplate::named(name, source, &chats.named_tokens)?);
        }
        let mut codec = Codec { added, pipeline, len, num_ids, most_bytes };
        if codec.pipeline.around.leading.is_empty() && config.adds_bos {
            let bos = chats.named_tokens.iter().find(|(name, _)| *name == "bos_token");
            let bos = bos.and_then(|(_, text)| codec.token_to_id(text));
            codec.pipeline.around.leading.extend(bos);
        }
        codec.pipeline.around.leading.extend(config.leading_token_id);
        Ok(Self { inner: Arc::new(codec), chats: Arc::new(chats) })
    }

    /// This tokenizer with another chat template, for every chat.
    ///
    /// ```
    /// # fn main() -> Result<(), qwen_tokenizer::Error> {
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// use qwen_tokenizer::{ChatInput, Message, Tokenizer};
    /// let tokenizer = Tokenizer::from_bytes(json, None)?.with_chat_template("{{ messages[0].content }}")?;
    /// let messages = [Message::user("Hi")];
    /// assert_eq!(tokenizer.encode_chat(&ChatInput::new(&messages))?.text, "Hi");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_chat_template(&self, source: &str) -> Result<Self> {
        let named_tokens = self.chats.named_tokens.clone();
        let default = Some(ChatTemplate::named(crate::config::DEFAULT_TEMPLATE, source, &named_tokens)?);
        let chats = Chats { default, tool_use: None, named_tokens, looked_for: String::new() };
        Ok(Self { inner: Arc::clone(&self.inner), chats: Arc::new(chats) })
    }

    /// Encodes a text. No token is added at its beginning or end: a text may be a part of another. A prompt that is no
    /// chat is [`encode_prompt`](Self::encode_prompt)'s.
    ///
    /// With `parse_special`, control tokens written in the text become control tokens: for prompts that a program
    /// wrote. Without, they are text like any other: for what a user typed. This concerns every added token of
    /// tokenizer.json, those that are not marked `special` (such as `<tool_call>`) too.
    ///
    /// ```
    /// # fn main() -> Result<(), qwen_tokenizer::Error> {
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(include_bytes!("../tests/data/tokenizer.json"), None)?;
    /// assert_eq!(tokenizer.encode("<|im_end|>", true)?.len(), 1);
    /// assert!(tokenizer.encode("<|im_end|>", false)?.len() > 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        self.encode_within(text, parse_special, usize::MAX)
    }

    /// [`encode`](Self::encode) for at most `limit` ids.
    ///
    /// A text that cannot fit is refused by its bytes alone; another is encoded until there is no more room. So the
    /// refusal of a text of any length costs little.
    ///
    /// # Errors
    /// [`Error::TooManyTokens`] for a text of more than `limit` ids.
    ///
    /// ```
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(include_bytes!("../tests/data/tokenizer.json"), None)?;
    /// use qwen_tokenizer::Error;
    /// assert_eq!(tokenizer.encode_within("Hi", false, 2)?, tokenizer.encode("Hi", false)?);
    /// let error = tokenizer.encode_within("Hi! Hi! Hi!", false, 2).unwrap_err();
    /// assert!(matches!(error, Error::TooManyTokens { limit: 2, .. }));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn encode_within(&self, text: &str, parse_special: bool, limit: usize) -> Result<Vec<u32>> {
        self.inner.check_bytes(text.len(), limit)?;
        if parse_special { self.inner.encode(text, &[], limit) } else { self.inner.encode_plain(text, limit) }
    }

    /// Encodes a prompt that is no chat, as transformers' `tokenizer(text)` does: control tokens written in it are control
    /// tokens, and what tokenizer.json (`post_processor`) or a GGUF file (`add_bos_token`) puts around a text is there.
    /// Qwen2.5 puts nothing around it, models made of others' tokenizers a BOS before it. A chat's template writes what
    /// its chats begin with.
    ///
    /// # Errors
    /// [`Error::TooManyTokens`] for a prompt of more than `limit` ids.
    ///
    /// ```
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(include_bytes!("../tests/data/tokenizer.json"), None)?;
    /// let prompt = tokenizer.encode_prompt("Once upon a time", 100)?;
    /// assert_eq!(prompt, tokenizer.encode("Once upon a time", true)?); // nothing around it here
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn encode_prompt(&self, text: &str, limit: usize) -> Result<Vec<u32>> {
        let Around { leading, trailing } = &self.inner.pipeline.around;
        let room =
            limit.checked_sub(leading.len() + trailing.len()).ok_or(Error::TooManyTokens { limit, bytes: None })?;
        let mut ids = leading.clone();
        ids.extend(self.encode_within(text, true, room)?);
        ids.extend(trailing);
        Ok(ids)
    }

    /// Renders a chat with the checkpoint's template and encodes it.
    ///
    /// Control tokens in contents stay text unless [`ChatInput::trust_contents`] says otherwise. For contents without
    /// any, the ids are those of transformers' `apply_chat_template` either way.
    ///
    /// ```
    /// # fn main() -> Result<(), qwen_tokenizer::Error> {
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_dir(folder)?;
    /// use qwen_tokenizer::{ChatInput, Message};
    /// let messages = [Message::system("Be brief."), Message::user("Hi")];
    /// let chat = tokenizer.encode_chat(&ChatInput::new(&messages))?;
    /// assert!(chat.text.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
    /// assert_eq!(tokenizer.decode(&chat.ids, false), chat.text);
    /// # Ok(())
    /// # }
    /// ```
    pub fn encode_chat(&self, input: &ChatInput<'_>) -> Result<EncodedChat> {
        self.encode_chat_within(input, usize::MAX)
    }

    /// [`encode_chat`](Self::encode_chat) for at most `limit` ids. Rendering and encoding stop where there is no more
    /// room, so the refusal of a chat of any length costs little.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat), and [`Error::TooManyTokens`] for a chat of more than `limit` ids.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// use qwen_tokenizer::{ChatInput, Error, Message};
    /// let messages = [Message::user("Hi! ".repeat(1_000_000))];
    /// let error = tokenizer.encode_chat_within(&ChatInput::new(&messages), 1024).unwrap_err();
    /// assert!(matches!(error, Error::TooManyTokens { limit: 1024, .. }));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn encode_chat_within(&self, input: &ChatInput<'_>, limit: usize) -> Result<EncodedChat> {
        self.encode_chat_from(input, limit, None)
    }

    /// [`encode_chat_within`](Self::encode_chat_within) for a chat that goes on after `before`, an earlier prompt of it and
    /// what was [answered](EncodedChat::answered): where its text begins with that, its ids begin with those. So a model
    /// reads its own answers as it wrote them, and what was computed for them stays of use. Where the template rewrites
    /// earlier answers, as those do that drop their thinking, the whole chat is encoded again.
    ///
    /// # Errors
    /// As [`encode_chat_within`](Self::encode_chat_within).
    pub fn encode_chat_after(&self, input: &ChatInput<'_>, limit: usize, before: &EncodedChat) -> Result<EncodedChat> {
        self.encode_chat_from(input, limit, Some(before))
    }

    fn encode_chat_from(
        &self,
        input: &ChatInput<'_>,
        limit: usize,
        before: Option<&EncodedChat>,
    ) -> Result<EncodedChat> {
        let template = self.template_for(input.has_tools())?;
        let most_bytes = self.inner.most_bytes.and_then(|bytes| bytes.checked_mul(limit));
        let room = Room { tokens: limit, bytes: most_bytes };
        chat::encode(template, input, &self.inner, room, before)
    }

    /// Renders a chat with the checkpoint's template.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// use qwen_tokenizer::{ChatInput, Message};
    /// let messages = [Message::user("Hi")];
    /// let input = ChatInput::new(&messages).add_generation_prompt(false);
    /// assert!(tokenizer.render_chat(&input)?.ends_with("<|im_start|>user\nHi<|im_end|>\n"));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn render_chat(&self, input: &ChatInput<'_>) -> Result<String> {
        self.template_for(input.has_tools())?.render(input)
    }

    /// The template for chats without tools, or an error that says where one was looked for.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert!(tokenizer.chat_template()?.source().contains("<|im_start|>"));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.template_for(false)
    }

    pub(crate) fn template_for(&self, tools: bool) -> Result<&ChatTemplate> {
        let chats = &self.chats;
        let tool_use = chats.tool_use.as_ref().filter(|_| tools);
        tool_use
            .or(chats.default.as_ref())
            .ok_or_else(|| Error::NoChatTemplate { looked_for: chats.looked_for.clone() })
    }

    /// The text of ids. What is no UTF-8 becomes U+FFFD; ids without a token give nothing.
    ///
    /// `skip_special` leaves out the tokens that tokenizer.json marks `special`.
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// let ids = tokenizer.encode("Hi<|im_end|>", true)?;
    /// assert_eq!(tokenizer.decode(&ids, false), "Hi<|im_end|>");
    /// assert_eq!(tokenizer.decode(&ids, true), "Hi");
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            self.inner.push_bytes(id, skip_special, &mut bytes);
        }
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// A decoder that takes ids one at a time; see [`DecodeStream`].
    ///
    /// ```
    /// # let json = include_bytes!("../tests/data/tokenizer.json");
    /// # let config = include_bytes!("../tests/data/tokenizer_config.json");
    /// # let tokenizer = qwen_tokenizer::Tokenizer::from_bytes(json, Some(config))?;
    /// assert_eq!(tokenizer.decode_stream(true).push(33).as_deref(), Some("!"));
    /// # Ok::<(), qwen_tokenizer::Error>(())
    /// ```
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(Arc::clone(&self.inner), skip_special)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let template = self.chats.default.as_ref().map(ChatTemplate::name);
        f.debug_struct("Tokenizer").field("len", &self.len()).field("template", &template).finish_non_exhaustive()
    }
}
