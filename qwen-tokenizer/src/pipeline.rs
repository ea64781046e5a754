//! Text without control tokens to ids: normaliser, splitting, byte-level BPE.
//!
//! The steps are the `tokenizers` library's, except splitting where `split` can do it in linear time. Control
//! tokens are found before (see `added`), and ids become text in `decode`.

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::{
    NormalizedString, OffsetType, PreTokenizedString, SplitDelimiterBehavior,
};
use tokenizers::{Model, Normalizer, PreTokenizer};

use crate::error::{Error, Result};
use crate::file::TOKENIZER_JSON;
use crate::split::{BYTE_LEVEL_PATTERN, LinearSplit};

/// The steps of tokenizer.json between its control tokens.
pub(crate) struct Pipeline {
    normalizer: Option<NormalizerWrapper>,
    steps: Vec<Step>,
    model: BPE,
}

enum Step {
    Split(LinearSplit),
    Library(PreTokenizerWrapper),
}

impl Pipeline {
    pub(crate) fn new(
        normalizer: Option<Value>,
        pre_tokenizer: Option<Value>,
        model: BPE,
    ) -> Result<Self> {
        let normalizer = normalizer
            .map(|json| {
                serde_json::from_value(json)
                    .map_err(|e| Error::invalid(TOKENIZER_JSON, "normalizer", e))
            })
            .transpose()?;
        let mut steps = Vec::new();
        if let Some(json) = pre_tokenizer {
            add_steps(&mut steps, json)?;
        }
        Ok(Self {
            normalizer,
            steps,
            model,
        })
    }

    pub(crate) fn model(&self) -> &BPE {
        &self.model
    }

    /// Appends the ids of `text`, in which control tokens are text like any other.
    pub(crate) fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        self.try_encode(text, ids).map_err(|e| Error::Encode {
            reason: e.to_string(),
        })
    }

    fn try_encode(&self, text: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut text = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer {
            normalizer.normalize(&mut text)?;
        }
        let mut words = PreTokenizedString::from(text);
        for step in &self.steps {
            match step {
                Step::Split(split) => {
                    words.split(|_, word| word.split(split, SplitDelimiterBehavior::Isolated))?
                }
                Step::Library(step) => step.pre_tokenize(&mut words)?,
            }
        }
        words.tokenize(|word| self.model.tokenize(word.get()))?;
        ids.extend_from_slice(words.into_encoding(None, 0, OffsetType::None)?.get_ids());
        Ok(())
    }
}

/// Appends the steps of one `pre_tokenizer` object, opening sequences and giving splits to `LinearSplit`.
fn add_steps(steps: &mut Vec<Step>, mut json: Value) -> Result<()> {
    match json.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            // One level is what the library's files have; a sequence inside a sequence goes to the library whole.
            if let Some(Value::Array(inner)) = json.get_mut("pretokenizers").map(Value::take) {
                return inner.into_iter().try_for_each(|step| add_step(steps, step));
            }
            Err(Error::invalid(
                TOKENIZER_JSON,
                "pre_tokenizer.pretokenizers",
                "expected a list of steps",
            ))
        }
        _ => add_step(steps, json),
    }
}

fn add_step(steps: &mut Vec<Step>, mut json: Value) -> Result<()> {
    let is = |json: &Value, key: &str, want: &Value| json.get(key) == Some(want);
    let pattern = json.pointer("/pattern/Regex").and_then(Value::as_str);
    if let (Some("Split"), Some(pattern)) = (json.get("type").and_then(Value::as_str), pattern)
        && is(&json, "behavior", &"Isolated".into())
        && is(&json, "invert", &false.into())
        && let Some(split) = LinearSplit::new(pattern)
    {
        steps.push(Step::Split(split));
        return Ok(());
    }
    if is(&json, "type", &"ByteLevel".into())
        && is(&json, "add_prefix_space", &false.into())
        && !is(&json, "use_regex", &false.into())
        && let (Some(split), Some(use_regex)) = (
            LinearSplit::new(BYTE_LEVEL_PATTERN),
            use_regex_slot(&mut json),
        )
    {
        *use_regex = false.into();
        steps.push(Step::Split(split));
    }
    let step = serde_json::from_value(json)
        .map_err(|e| Error::invalid(TOKENIZER_JSON, "pre_tokenizer", e))?;
    steps.push(Step::Library(step));
    Ok(())
}

fn use_regex_slot(json: &mut Value) -> Option<&mut Value> {
    Some(
        json.as_object_mut()?
            .entry("use_regex")
            .or_insert(Value::Null),
    )
}
