//! Reading tokenizer_config.json and the template files beside it.
//!
//! Only what a chat needs is taken: the templates and the named special tokens. What the templates mean is
//! `template`'s business.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::bounded::BoundedList;
use crate::declared::{self, ADDED_TOKENS_JSON, DeclaredToken};
use crate::error::{Error, Result};
use crate::file;

pub(crate) const TOKENIZER_CONFIG_JSON: &str = "tokenizer_config.json";
pub(crate) const CHAT_TEMPLATE_JINJA: &str = "chat_template.jinja";
pub(crate) const CHAT_TEMPLATE_JSON: &str = "chat_template.json";
/// The folder of templates with names.
pub(crate) const ADDITIONAL_CHAT_TEMPLATES: &str = "additional_chat_templates";

/// The name a template goes by when the file gives it none.
pub(crate) const DEFAULT_TEMPLATE: &str = "default";
/// The name of the template for chats with tools, where a checkpoint has a separate one.
pub(crate) const TOOL_USE_TEMPLATE: &str = "tool_use";

/// tokenizer_config.json repeats the added tokens, so it may be large.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// A template's file, as JSON text, where each character may take six.
const MAX_TEMPLATE_BYTES: u64 = 8 << 20;
/// The templates that one file may name.
const MAX_TEMPLATES: usize = 64;
/// The lists of special tokens as JSON.
const MAX_SPECIAL_TOKENS_JSON: u64 = 1 << 20;
/// The longest special token as JSON.
const MAX_TOKEN_JSON: usize = 1 << 16;

/// What tokenizer_config.json, or a GGUF file, says about chats.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// Name and source.
    pub(crate) templates: Vec<(String, String)>,
    /// Variable (`eos_token`, ...) and the token's text.
    pub(crate) named_tokens: Vec<(&'static str, String)>,
    /// Added tokens, which tokenizer.json may lack.
    pub(crate) declared: Vec<DeclaredToken>,
    /// What a text that is no chat begins with, beside what tokenizer.json says.
    pub(crate) leading_token_id: Option<u32>,
    /// Whether `bos_token` is that, unless tokenizer.json says what.
    pub(crate) adds_bos: bool,
}

impl Config {
    /// Reads the files of `folder`, in the order of preference that transformers has: where there are files of templates,
    /// the key in tokenizer_config.json does not count.
    pub(crate) fn from_dir(folder: &Path) -> Result<Self> {
        let mut config = match file::read(&folder.join(TOKENIZER_CONFIG_JSON), MAX_CONFIG_BYTES)? {
            Some(json) => Self::from_bytes(&json)?,
            None => Self::default(),
        };
        let default = read_template(&folder.join(CHAT_TEMPLATE_JINJA), CHAT_TEMPLATE_JINJA)?;
        let json = match default {
            Some(_) => None,
            None => file::read(&folder.join(CHAT_TEMPLATE_JSON), MAX_TEMPLATE_BYTES)?,
        };
        if let Some(json) = json {
            let json = parse(CHAT_TEMPLATE_JSON, &json)?;
            config.templates = templates(CHAT_TEMPLATE_JSON, json.chat_template)?;
        } else {
            let mut files: Vec<_> = default.into_iter().map(|source| (DEFAULT_TEMPLATE.into(), source)).collect();
            files.extend(additional_templates(&folder.join(ADDITIONAL_CHAT_TEMPLATES))?);
            if !files.is_empty() {
                config.templates = files;
            }
        }
        // Beside `added_tokens_decoder` the older file does not count.
        if !config.declared.iter().any(|token| token.id.is_some())
            && let Some(json) = file::read(&folder.join(ADDED_TOKENS_JSON), MAX_CONFIG_BYTES)?
        {
            config.declared.splice(0..0, declared::of_older_file(&json)?);
        }
        Ok(config)
    }

    pub(crate) fn from_bytes(json: &[u8]) -> Result<Self> {
        file::check_size(TOKENIZER_CONFIG_JSON, json.len() as u64, MAX_CONFIG_BYTES)?;
        let json = file::without_nan(json);
        let json = parse(TOKENIZER_CONFIG_JSON, &json)?;
        let named = [
            ("bos_token", json.bos_token),
            ("eos_token", json.eos_token),
            ("pad_token", json.pad_token),
            ("unk_token", json.unk_token),
        ];
        let mut named_tokens = Vec::new();
        for (name, token) in named {
            named_tokens.extend(token_text(name, token)?.map(|text| (name, text)));
        }
        let mut declared = declared::of_config(TOKENIZER_CONFIG_JSON, json.added_tokens_decoder)?;
        declared.extend(named_tokens.iter().map(|(_, text)| DeclaredToken::named(text, true)));
        for (name, tokens) in [
            ("additional_special_tokens", json.additional_special_tokens),
            ("extra_special_tokens", json.extra_special_tokens),
        ] {
            declared.extend(special_tokens(name, tokens)?.iter().map(|text| DeclaredToken::named(text, true)));
        }
        let templates = templates(TOKENIZER_CONFIG_JSON, json.chat_template)?;
        // The class whose texts begin with BOS unless told otherwise; the one of Qwen2.5 does not look at the key.
        let is_llama = json.tokenizer_class.is_some_and(|class| class.get().contains("Llama"));
        let adds_bos = is_llama && json.add_bos_token.is_some_and(|yes| yes.get() == "true");
        Ok(Self { templates, named_tokens, declared, adds_bos, ..Self::default() })
    }
}

/// Each key is kept as the text it is in the file, until its size and form are known.
#[derive(Deserialize)]
struct ConfigJson<'a> {
    #[serde(borrow)]
    chat_template: Option<&'a RawValue>,
    #[serde(borrow)]
    bos_token: Option<&'a RawValue>,
    #[serde(borrow)]
    eos_token: Option<&'a RawValue>,
    #[serde(borrow)]
    pad_token: Option<&'a RawValue>,
    #[serde(borrow)]
    unk_token: Option<&'a RawValue>,
    #[serde(borrow)]
    tokenizer_class: Option<&'a RawValue>,
    #[serde(borrow)]
    add_bos_token: Option<&'a RawValue>,
    #[serde(borrow)]
    added_tokens_decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    additional_special_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    extra_special_tokens: Option<&'a RawValue>,
}

fn parse<'a>(file: &str, json: &'a [u8]) -> Result<ConfigJson<'a>> {
    serde_json::from_slice(json).map_err(|e| Error::invalid(file, "its JSON", e))
}

/// `chat_template` is a string, or a list of `{"name": ..., "template": ...}`.
fn templates(file: &str, json: Option<&RawValue>) -> Result<Vec<(String, String)>> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    let invalid = |e: serde_json::Error| Error::invalid(file, "chat_template", e);
    let Some(json) = json.map(RawValue::get) else { return Ok(Vec::new()) };
    match json.as_bytes().first() {
        Some(b'"') => Ok(vec![(DEFAULT_TEMPLATE.into(), serde_json::from_str(json).map_err(invalid)?)]),
        Some(b'[') => {
            let list: BoundedList<Named, MAX_TEMPLATES> = serde_json::from_str(json).map_err(invalid)?;
            Ok(list.0.into_iter().map(|named| (named.name, named.template)).collect())
        }
        _ => Err(Error::invalid(file, "chat_template", "expected a string or a list of named templates")),
    }
}

/// The templates of a folder, each named as its file.
fn additional_templates(folder: &Path) -> Result<Vec<(String, String)>> {
    let unreadable = |e: std::io::Error| Error::Read { path: folder.into(), kind: e.kind(), reason: e.to_string() };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(unreadable(e)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            paths.push(path);
        }
        if paths.len() > MAX_TEMPLATES {
            let problem = format!("has more than {MAX_TEMPLATES} templates");
            return Err(Error::invalid(&folder.display().to_string(), "the folder", problem));
        }
    }
    paths.sort();
    let mut templates = Vec::new();
    for path in paths {
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        let source = read_template(&path, &path.display().to_string())?;
        templates.extend(source.map(|source| (name.to_owned(), source)));
    }
    Ok(templates)
}

/// The text of a template's file, which errors call `name`; `None` where it does not exist.
fn read_template(path: &Path, name: &str) -> Result<Option<String>> {
    let text =
        |source| String::from_utf8(source).map_err(|e| Error::invalid(name, "its text", format!("is not UTF-8: {e}")));
    file::read(path, MAX_TEMPLATE_BYTES)?.map(text).transpose()
}

/// Texts of special tokens: a list, or an object with names for keys.
fn special_tokens(name: &str, json: Option<&RawValue>) -> Result<Vec<String>> {
    let Some(json) = json.map(RawValue::get) else { return Ok(Vec::new()) };
    let invalid = |problem: String| Error::invalid(TOKENIZER_CONFIG_JSON, name, problem);
    if json.len() as u64 > MAX_SPECIAL_TOKENS_JSON {
        return Err(invalid(format!("has {} bytes, more than {MAX_SPECIAL_TOKENS_JSON}", json.len())));
    }
    let items = match serde_json::from_str(json).map_err(|e| invalid(e.to_string()))? {
        Value::Array(items) => items,
        Value::Object(entries) => entries.into_iter().map(|(_, token)| token).collect(),
        _ => Vec::new(),
    };
    Ok(items.into_iter().filter_map(content).collect())
}

/// The text of a special token: the token itself or, in older files, what an object has under `content`.
fn content(token: Value) -> Option<String> {
    match token {
        Value::String(text) => Some(text),
        Value::Object(mut token) => match token.remove("content") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// A special token is its text, or (older files) an object with the text under `content`.
fn token_text(name: &str, json: Option<&RawValue>) -> Result<Option<String>> {
    let Some(json) = json.map(RawValue::get) else { return Ok(None) };
    if json.len() > MAX_TOKEN_JSON {
        let problem = format!("has {} bytes, more than {MAX_TOKEN_JSON}", json.len());
        return Err(Error::invalid(TOKENIZER_CONFIG_JSON, name, problem));
    }
    match serde_json::from_str(json).map_err(|e| Error::invalid(TOKENIZER_CONFIG_JSON, name, e))? {
        Value::Null => Ok(None),
        token @ (Value::String(_) | Value::Object(_)) => match content(token) {
            Some(text) => Ok(Some(text)),
            None => Err(Error::invalid(TOKENIZER_CONFIG_JSON, name, "has no text under `content`")),
        },
        _ => Err(Error::invalid(TOKENIZER_CONFIG_JSON, name, "expected a string or an object")),
    }
}
