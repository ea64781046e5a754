//! What the tests share: where the goldens are, and vocabularies in the form that GGUF files have, read from a file or
//! made of a tokenizer.json as converters make them.
#![allow(dead_code, reason = "each test takes a part")]

use std::path::{Path, PathBuf};

use qwen_tokenizer::{Error, GgufVocabulary, Tokenizer};
use serde_json::{Value, json};

pub(crate) const TOKENIZER_JSON: &[u8] = include_bytes!("../data/tokenizer.json");
pub(crate) const CONFIG_JSON: &[u8] = include_bytes!("../data/tokenizer_config.json");

/// The goldens' folder, by `QWEN_GOLDEN` or beside the workspace; where there is none the test says so and passes.
pub(crate) fn golden_dir() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    let folder = std::env::var_os("QWEN_GOLDEN").map_or_else(default, PathBuf::from);
    if folder.join("tokenizer.json").exists() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no goldens in {}; set QWEN_GOLDEN to their folder", folder.display());
    None
}

/// What a whole answer and its pieces decode to.
pub(crate) fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.decode_stream(skip_special);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.finish());
    assert!(!stream.is_pending());
    text
}

/// The metadata of a GGUF file that concerns its tokenizer.
#[derive(Clone)]
pub(crate) struct Form {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
    /// Everything else under `tokenizer.`, by the rest of its key.
    pub(crate) other: Value,
}

impl Form {
    /// A tokenizer.json as converters write it, padded to `rows`.
    pub(crate) fn of(tokenizer_json: &[u8], rows: usize) -> Self {
        let json: Value = serde_json::from_slice(tokenizer_json).unwrap();
        let tokens = (0..rows).map(|row| format!("[PAD{row}]")).collect();
        let merges = json["model"]["merges"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().into()).collect();
        let mut form = Self { tokens, types: vec![5; rows], merges, other: json!({"ggml.model": "gpt2"}) };
        for (token, id) in json["model"]["vocab"].as_object().unwrap() {
            form.set(id.as_u64().unwrap() as usize, token, 1);
        }
        form.add_tokens(&json);
        form
    }

    /// The added tokens of a tokenizer.json. Converters take those that look like control tokens for control tokens.
    pub(crate) fn add_tokens(&mut self, tokenizer_json: &Value) {
        for token in tokenizer_json["added_tokens"].as_array().unwrap() {
            let content = token["content"].as_str().unwrap();
            let is_control = token["special"] == true || (content.starts_with("<|") && content.ends_with("|>"));
            self.set(token["id"].as_u64().unwrap() as usize, content, if is_control { 3 } else { 4 });
        }
    }

    pub(crate) fn set(&mut self, id: usize, token: &str, kind: i32) {
        self.tokens[id] = token.into();
        self.types[id] = kind;
    }

    /// Reads a GGUF file, version 2 or 3.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut rest = bytes.as_slice();
        assert_eq!(take::<4>(&mut rest), *b"GGUF");
        let [_version, _tensors, entries] = [u32_of(&mut rest).into(), u64_of(&mut rest), u64_of(&mut rest)];
        let mut form = Self { tokens: vec![], types: vec![], merges: vec![], other: json!({}) };
        for _ in 0..entries {
            let (key, kind) = (string(&mut rest), u32_of(&mut rest));
            let value = value(&mut rest, kind);
            let texts = || value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect();
            match key.strip_prefix("tokenizer.") {
                Some("ggml.tokens") => form.tokens = texts(),
                Some("ggml.merges") => form.merges = texts(),
                Some("ggml.token_type") => form.types = serde_json::from_value(value).unwrap(),
                Some(key) => drop(form.other.as_object_mut().unwrap().insert(key.into(), value)),
                None => {}
            }
        }
        form
    }

    /// The tokenizer of this metadata after `change`.
    pub(crate) fn load(&self, change: impl FnOnce(&mut GgufVocabulary<'_>)) -> Result<Tokenizer, Error> {
        let tokens: Vec<&str> = self.tokens.iter().map(String::as_str).collect();
        let merges: Vec<&str> = self.merges.iter().map(String::as_str).collect();
        let text = |key: &str| self.other.get(key).and_then(Value::as_str);
        let id = |key: &str| self.other.get(key).and_then(Value::as_u64).map(|id| id as u32);
        let mut vocabulary = GgufVocabulary {
            file: "model.gguf",
            model: text("ggml.model").unwrap_or_default(),
            pre: text("ggml.pre"),
            tokens: &tokens,
            token_types: &self.types,
            merges: &merges,
            bos_token_id: id("ggml.bos_token_id"),
            eos_token_id: id("ggml.eos_token_id"),
            padding_token_id: id("ggml.padding_token_id"),
            unknown_token_id: id("ggml.unknown_token_id"),
            add_bos_token: self.other.get("ggml.add_bos_token") == Some(&Value::Bool(true)),
            chat_template: text("chat_template"),
            named_chat_templates: &[],
        };
        change(&mut vocabulary);
        Tokenizer::from_gguf_vocabulary(&vocabulary)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (taken, after) = rest.split_first_chunk().unwrap();
    *rest = after;
    *taken
}

fn u32_of(rest: &mut &[u8]) -> u32 {
    u32::from_le_bytes(take(rest))
}

fn u64_of(rest: &mut &[u8]) -> u64 {
    u64::from_le_bytes(take(rest))
}

fn string(rest: &mut &[u8]) -> String {
    let length = u64_of(rest) as usize;
    let (text, after) = rest.split_at(length);
    *rest = after;
    String::from_utf8(text.into()).unwrap()
}

fn value(rest: &mut &[u8], kind: u32) -> Value {
    match kind {
        0 => take::<1>(rest)[0].into(),
        4 => u32_of(rest).into(),
        5 => i32::from_le_bytes(take(rest)).into(),
        6 => f32::from_le_bytes(take(rest)).into(),
        7 => (take::<1>(rest)[0] != 0).into(),
        8 => string(rest).into(),
        9 => {
            let (kind, length) = (u32_of(rest), u64_of(rest));
            (0..length).map(|_| value(rest, kind)).collect()
        }
        10 => u64_of(rest).into(),
        other => panic!("metadata of type {other}"),
    }
}
