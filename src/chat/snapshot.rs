//! Conversations in files, with the K/V that was computed for them.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use qwen_core::Error as CoreError;
use qwen_core::backend::KvSpec;
use qwen_core::engine::SavedRoot;
use qwen_core::numerics::float_env::FloatEnv;

use super::kv_file::{Header, Reader, SavedKv, Writer, blocks_of_part};
use super::{Chat, ChatState};
use crate::engine::Engine;
use crate::error::Result;
use crate::events::info;
use crate::fingerprint::fnv1a;
use crate::generate::GenerateOptions;

impl Engine {
    /// Go on with a conversation that [`Chat::save`] has written, by this process or by another. What its file has of the
    /// K/V is in the engine's prefix cache then: the next answer computes only what is new, and has the same bits as if the
    /// conversation had never been saved. Where there is less room than K/V, its beginning is restored.
    ///
    /// The file has to be one that the program trusts: K/V cannot be compared with the text that it stands for. K/V of
    /// another device, or of another version of this library, is used by this conversation and its forks alone, since
    /// their bits differ.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSnapshot`](crate::ErrorKind::InvalidSnapshot) for a file that is damaged, and for K/V of another
    /// model, configuration, precision or encoding: the text names what differs. [`ChatState::load`] and [`Engine::resume`]
    /// then go on with the messages. The same way out for engines that hold no K/V for later:
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a prefix cache and with ranks,
    /// [`qwen_core::Error::OutOfBlocks`] while running requests use all of it. A conversation with a
    /// [`GenerateOptions::cache_salt`] is restored by [`Engine::restore_with_salt`].
    pub fn restore(&self, path: impl AsRef<Path>) -> Result<Chat> {
        self.restore_from(path.as_ref(), None)
    }

    /// [`Engine::restore`] of a conversation with a [`GenerateOptions::cache_salt`], which its file does not have. It has
    /// `cache_salt` from now on.
    ///
    /// # Errors
    /// As [`Engine::restore`].
    pub fn restore_with_salt(&self, path: impl AsRef<Path>, cache_salt: impl Into<String>) -> Result<Chat> {
        self.restore_from(path.as_ref(), Some(cache_salt.into()))
    }

    fn restore_from(&self, path: &Path, salt: Option<String>) -> Result<Chat> {
        let _float_env = FloatEnv::enter();
        let (Header { state, kv }, mut file) = Reader::open(path)?;
        let mut chat = self.resume(state)?;
        if let Some(SavedKv { salted: true, .. }) = &kv
            && salt.is_none()
        {
            let reason = "the conversation was saved with one, which is not in its file: give it to restore_with_salt";
            return Err(CoreError::argument("cache_salt", reason).into());
        }
        chat.options.cache_salt = salt.unwrap_or_default();
        let Some(kv) = kv else {
            return match file.blocks(0, 0)? {
                None => Ok(chat),
                Some(_) => Err(file.damaged("blocks without a description").into()),
            };
        };
        let stored = self.worker().with_core(|core| core.saved_kv())??;
        self.check_facts(path, &kv, &stored)?;
        chat.origin = Some(kv.computed_by).filter(|origin| *origin != self.computes_kv()).map(Into::into);
        let salt = chat.salted(&chat.options).cache_salt.clone();
        let root =
            SavedRoot::decode(&kv.root, salt).ok_or_else(|| file.damaged("K/V that depends on something else"))?;
        let ids: Option<Arc<[u32]>> = chat.with(|history| history.known.parts().1.get(..kv.tokens).map(Into::into));
        let Some(ids) = ids else { return Err(file.damaged("K/V of more tokens than there are").into()) };
        let (total, block_bytes) = (ids.len().div_ceil(stored.block_size.max(1)), stored.block_bytes());
        // Blocks that were read, and those that are in the cache.
        let (mut read, mut restored) = (0, 0);
        while let Some((count, bytes)) = file.blocks(block_bytes, total - read)? {
            if restored == read {
                let (root, ids) = (root.clone(), ids.clone());
                restored = self.worker().with_core(move |core| core.write_kv(&root, &ids, read, &bytes))??;
            }
            read += count;
        }
        if restored == 0 && read > 0 {
            let advice = "wait until a request has ended, or go on with the messages of the saved conversation, whose K/V \
                          is then computed again (ChatState::load, Engine::resume)";
            return Err(CoreError::OutOfBlocks { needed: read, available: 0, advice: advice.into() }.into());
        }
        info!("restored {restored} of {read} K/V blocks of {}", path.display());
        Ok(chat)
    }

    /// What saved K/V has to agree with, by name.
    fn saved_facts(&self, stored: &KvSpec) -> Vec<(String, String)> {
        let runs = stored.key_encodings.chunk_by(|a, b| a == b);
        let keys: Vec<_> = runs.filter_map(|run| Some(format!("{} x {}", run.len(), run.first()?))).collect();
        let encodings = format!("{} for keys, {} for values", keys.join(", "), stored.value_encoding);
        let vocabulary = self.fingerprint().unwrap_or("none").to_owned();
        let own = [
            ("the digest of the vocabulary", vocabulary),
            ("the encoding of K/V", encodings),
            ("the size of a K/V block", format!("{} positions", stored.block_size)),
        ];
        let facts = self.kv_facts().iter().cloned().chain(own);
        facts.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn check_facts(&self, path: &Path, kv: &SavedKv, stored: &KvSpec) -> Result<()> {
        let own = self.saved_facts(stored);
        let value = |facts: &[(String, String)], name: &str| {
            let found = facts.iter().find(|(known, _)| known == name);
            found.map_or_else(|| "not known".to_owned(), |(_, value)| value.clone())
        };
        for (name, _) in own.iter().chain(&kv.facts) {
            let (expected, found) = (value(&own, name), value(&kv.facts, name));
            if expected != found {
                return Err(
                    CoreError::SnapshotMismatch { path: path.into(), what: name.clone(), expected, found }.into()
                );
            }
        }
        Ok(())
    }

    /// Who computes the bits of this engine's K/V.
    fn computes_kv(&self) -> String {
        format!("{} by qwen-rs {}", self.device_name(), env!("CARGO_PKG_VERSION"))
    }
}

impl ChatState {
    /// The messages and all else of a conversation that [`Chat::save`] has written, without its K/V and without its
    /// [`GenerateOptions::cache_salt`]: for any model ([`Engine::resume`]), and for a file whose K/V is damaged.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSnapshot`](crate::ErrorKind::InvalidSnapshot) where this part of the file is damaged.
    pub fn load(path: impl AsRef<Path>) -> Result<ChatState> {
        Ok(Reader::open(path.as_ref())?.0.state)
    }
}

impl Chat {
    /// Write the conversation to a file: what [`Chat::state`] has, without the [`GenerateOptions::cache_salt`], and as much
    /// of its K/V as the engine's prefix cache still holds. [`Engine::restore`] goes on with it. Returns the number of
    /// tokens whose K/V is in the file: none where the engine has no prefix cache or spans several ranks.
    ///
    /// The file is written beside `path` and moved there when it is complete; on Unix only its owner may read it. Its size
    /// is that of the K/V, about 12 KiB a token for the 0.5B model and 56 KiB for the 7B one in 16 bits. The engine copies a
    /// few megabytes between two steps, so that other answers go on.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut chat = engine.chat().options(GenerateOptions::new().greedy());
    /// chat.send("What is 3 + 4?")?.text()?;
    /// # let path = std::env::temp_dir().join(format!("qwen-doc-{}.chat", std::process::id()));
    /// let saved = chat.save(&path)?;
    /// # drop((engine, chat));
    ///
    /// // Later, in another process:
    /// # let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let mut chat = engine.restore(&path)?;
    /// let mut reply = chat.send("Hello!")?;
    /// let answer: String = reply.by_ref().collect::<qwen::Result<_>>()?;
    /// assert!(saved > 0 && reply.stats().cached_tokens == saved);
    /// # std::fs::remove_file(&path).unwrap();
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the file cannot be written, when the device fails, and after the engine has ended.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<usize> {
        let _float_env = FloatEnv::enter();
        let mut state = self.state();
        state.options.cache_salt.clear();
        let worker = self.engine.worker();
        let salt = self.salted(&self.options).cache_salt.clone();
        let ids: Arc<[u32]> = self.with(|history| history.known.parts().1.into());
        let (wanted, tokens) = (salt, ids.clone());
        let found = worker.with_core(move |core| {
            let stored = core.saved_kv()?;
            Ok((core.find_kv(&wanted, &tokens)?, stored))
        })?;
        let (root, tokens, stored) = match found {
            Ok((Some((root, tokens)), stored)) => (root, tokens, stored),
            // Whether there is no K/V of it, or none that can be saved.
            Ok((None, _)) | Err(CoreError::Unsupported { .. }) => {
                Writer::create(path.as_ref(), &Header { state, kv: None })?.finish()?;
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let kv = SavedKv {
            facts: self.engine.saved_facts(&stored),
            computed_by: self.computed_by(),
            root: root.encode(),
            tokens,
            salted: !self.options.cache_salt.is_empty(),
        };
        let mut file = Writer::create(path.as_ref(), &Header { state, kv: Some(kv) })?;
        let (block_bytes, part) = (stored.block_bytes().max(1), blocks_of_part(stored.block_bytes()));
        let ids: Arc<[u32]> = ids.get(..tokens).unwrap_or(&ids).into();
        let (mut saved, blocks) = (0, tokens.div_ceil(stored.block_size.max(1)));
        while saved < blocks {
            let (range, root, ids) = (saved..blocks.min(saved + part), root.clone(), ids.clone());
            let wanted = range.len();
            let bytes = worker.with_core(move |core| core.read_kv(&root, &ids, range))??;
            let count = bytes.len() / block_bytes;
            if count > 0 {
                file.blocks(count, &bytes)?;
            }
            saved += count;
            if count < wanted {
                // Others needed the memory meanwhile.
                break;
            }
        }
        file.finish()?;
        Ok(tokens.min(saved * stored.block_size))
    }

    /// Which devices computed its K/V.
    fn computed_by(&self) -> String {
        let own = self.engine.computes_kv();
        match &self.origin {
            None => own,
            Some(origin) => format!("several devices ({:016x})", fnv1a(format!("{origin}, {own}").into_bytes())),
        }
    }

    /// Options for a request of this conversation: if its K/V comes from elsewhere, it shares none with others.
    pub(super) fn salted<'a>(&self, options: &'a GenerateOptions) -> Cow<'a, GenerateOptions> {
        match &self.origin {
            None => Cow::Borrowed(options),
            Some(origin) => {
                let cache_salt = format!("{}\0K/V of {origin}", options.cache_salt);
                Cow::Owned(options.clone().cache_salt(cache_salt))
            }
        }
    }
}
