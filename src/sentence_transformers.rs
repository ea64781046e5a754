//! What a checkpoint's folder says of embeddings, in the files of sentence-transformers.
//!
//! `modules.json` lists what makes a vector of a text, in order: the transformer, a pooling of its hidden states, whose
//! settings are in a folder of its own, and in many models a division by the vector's length.

use std::io::{ErrorKind, Read};
use std::path::{Component, Path};

use qwen_core::engine::Pooling;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Such files have a few hundred bytes.
const MAX_BYTES: u64 = 1 << 20;

/// How a checkpoint wants its texts embedded where the caller does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EmbedDefaults {
    /// The pooling, or why there is none that is known.
    pub(crate) pooling: Result<Pooling, String>,
    /// Whether vectors are divided by their lengths.
    pub(crate) normalise: bool,
}

/// An entry of modules.json. Other keys name and number it.
#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    class: String,
    #[serde(default)]
    path: String,
}

impl EmbedDefaults {
    /// What the files in the folder of a checkpoint say. Without any, or beside a single file, the last token counts.
    pub(crate) fn of(checkpoint: &Path) -> Self {
        let found = match read(checkpoint, "modules.json") {
            Ok(Some(text)) => modules(checkpoint, &text),
            // Some folders have the pooling's settings alone.
            Ok(None) => pooling_of(checkpoint, "1_Pooling").map(|pooling| (pooling.unwrap_or_default(), true)),
            Err(reason) => Err(reason),
        };
        match found {
            Ok((pooling, normalise)) => EmbedDefaults { pooling: Ok(pooling), normalise },
            Err(reason) => EmbedDefaults { pooling: Err(reason), normalise: true },
        }
    }
}

/// The pooling of modules.json, and whether vectors are normalised.
fn modules(checkpoint: &Path, text: &str) -> Result<(Pooling, bool), String> {
    let modules: Vec<Module> = serde_json::from_str(text).map_err(|error| format!("modules.json: {error}"))?;
    // The packages that classes come from have changed their names.
    let classes: Vec<&str> = modules.iter().map(|module| module.class.rsplit('.').next().unwrap_or_default()).collect();
    let (pooling, rest) = match (classes.as_slice(), modules.as_slice()) {
        (["Transformer", "Pooling", rest @ ..], [_, pooling, ..]) => (pooling, rest),
        _ => return Err(format!("modules.json has {classes:?}, not a Transformer and a Pooling")),
    };
    if let Some(other) = rest.iter().find(|class| **class != "Normalize") {
        return Err(format!("modules.json has a module {other:?} behind the pooling, which this library lacks"));
    }
    let found = pooling_of(checkpoint, &pooling.path)?;
    let found = found.ok_or_else(|| format!("modules.json names {}/config.json, which is not there", pooling.path))?;
    Ok((found, !rest.is_empty()))
}

/// The pooling that the settings in `folder` ask for, if they are there.
fn pooling_of(checkpoint: &Path, folder: &str) -> Result<Option<Pooling>, String> {
    let file = format!("{folder}/config.json");
    let Some(text) = read(checkpoint, &file)? else { return Ok(None) };
    let config: Map<String, Value> = serde_json::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
    // Either one key with a name, or a key for each kind.
    let mut kinds: Vec<&str> = config.get("pooling_mode").and_then(Value::as_str).into_iter().collect();
    let on = config.iter().filter(|(_, value)| **value == Value::Bool(true));
    kinds.extend(on.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")));
    match kinds.as_slice() {
        ["lasttoken"] => Ok(Some(Pooling::Last)),
        ["mean" | "mean_tokens"] if config.get("include_prompt") == Some(&Value::Bool(false)) => {
            Err(format!("{file} leaves prompts out of the mean (`include_prompt`); set the pooling to last or mean"))
        }
        ["mean" | "mean_tokens"] => Ok(Some(Pooling::Mean)),
        other => Err(format!("{file} asks for {other:?}; set the pooling to last or mean")),
    }
}

/// A file of the folder; `None` where there is none.
fn read(checkpoint: &Path, file: &str) -> Result<Option<String>, String> {
    if !Path::new(file).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("modules.json names {file}, which is outside of the checkpoint"));
    }
    let mut text = String::new();
    let read =
        std::fs::File::open(checkpoint.join(file)).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        // The checkpoint is a file.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(format!("{file}: {error}")),
    }
}
