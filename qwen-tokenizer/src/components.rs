//! The components of tokenizer.json around its model: which ones there may be.
//!
//! Allowed is what byte-level BPE of known decoders has. Everything else is refused by its name, since to leave a
//! component out would give other ids.

use serde_json::Value;
use serde_json::value::RawValue;
use tokenizers::normalizers::{Lowercase, NFC, NFD, NFKC, NFKD, NormalizerWrapper};

use crate::error::{Error, Result, TOKENIZER_JSON, compared};
use crate::split::{BYTE_LEVEL_PATTERN, LinearSplit};
use crate::vocabulary::MAX_ID;

/// The longest component as JSON text. Those of known files stay below 4 KB.
const MAX_BYTES: usize = 1 << 16;
/// The longest sequence of steps.
const MAX_STEPS: usize = 16;
const MAX_PATTERN_BYTES: usize = 1 << 12;

/// What is done with a text before BPE.
#[derive(Default)]
pub(crate) struct Components {
    pub(crate) normalizers: Vec<NormalizerWrapper>,
    pub(crate) splits: Vec<LinearSplit>,
    /// What stands before and behind a text that is no chat.
    pub(crate) around: Around,
}

/// Ids that `TemplateProcessing` puts around a text.
#[derive(Debug, Default, Clone)]
pub(crate) struct Around {
    pub(crate) leading: Vec<u32>,
    pub(crate) trailing: Vec<u32>,
}

impl Components {
    pub(crate) fn parse(
        normalizer: Option<&RawValue>,
        pre_tokenizer: Option<&RawValue>,
        post_processor: Option<&RawValue>,
        decoder: Option<&RawValue>,
    ) -> Result<Self> {
        let mut all = Self::default();
        for (key, step) in steps("normalizer", "normalizers", normalizer)? {
            all.normalizers.push(match kind(&step) {
                "NFC" => NormalizerWrapper::NFC(NFC),
                "NFD" => NormalizerWrapper::NFD(NFD),
                "NFKC" => NormalizerWrapper::NFKC(NFKC),
                "NFKD" => NormalizerWrapper::NFKD(NFKD),
                "Lowercase" => NormalizerWrapper::Lowercase(Lowercase),
                other => return refuse(&key, other, "NFC, NFD, NFKC, NFKD, Lowercase and sequences of these are"),
            });
        }
        all.add_splits(steps("pre_tokenizer", "pretokenizers", pre_tokenizer)?)?;
        for (key, step) in steps("post_processor", "processors", post_processor)? {
            match kind(&step) {
                "ByteLevel" => {}
                "TemplateProcessing" => all.around.add(&key, &step)?,
                other => return refuse(&key, other, "ByteLevel and TemplateProcessing are"),
            }
        }
        match steps("decoder", "decoders", decoder)?.as_slice() {
            // The ids are turned into bytes here, not by the library, so the decoder must be the one that this is.
            [(_, step)] if kind(step) == "ByteLevel" => {}
            [] => return refuse("decoder", "none", "this crate reads byte-level BPE (ByteLevel)"),
            [.., (key, step)] => return refuse(key, kind(step), "this crate reads byte-level BPE (ByteLevel)"),
        }
        Ok(all)
    }

    fn add_splits(&mut self, steps: Vec<(String, Value)>) -> Result<()> {
        let help = "Split, Digits and, as the last one, ByteLevel are";
        let last = steps.len().saturating_sub(1);
        if steps.is_empty() {
            return refuse("pre_tokenizer", "none", help);
        }
        for (i, (key, step)) in steps.into_iter().enumerate() {
            let is = |name: &str, default: bool| step.get(name).map_or(Some(default), Value::as_bool);
            match kind(&step) {
                "Split" => self.splits.push(split(&key, &step)?),
                "Digits" => {
                    let pattern = if is("individual_digits", false) == Some(true) { r"\p{N}" } else { r"\p{N}+" };
                    self.splits.extend(LinearSplit::new(pattern));
                }
                "ByteLevel" if i == last => {
                    if is("add_prefix_space", true) != Some(false) {
                        let key = format!("{key}.add_prefix_space");
                        return refuse(&key, "true", "no decoder of this family adds a space; false is");
                    }
                    if is("use_regex", true) != Some(false) {
                        self.splits.extend(LinearSplit::new(BYTE_LEVEL_PATTERN));
                    }
                    return Ok(());
                }
                other => return refuse(&key, other, help),
            }
        }
        refuse("pre_tokenizer", "a sequence without ByteLevel at its end", help)
    }
}

impl Around {
    /// Adds what a step puts around a single text; a later step's ids stand outside of an earlier one's.
    fn add(&mut self, key: &str, step: &Value) -> Result<()> {
        let invalid = |name: &str, problem: String| Error::invalid(TOKENIZER_JSON, &format!("{key}.{name}"), problem);
        let Some(pieces) = step.get("single").and_then(Value::as_array) else {
            return Err(invalid("single", "expected a list of pieces".into()));
        };
        let (mut leading, mut trailing) = (Vec::new(), Vec::new());
        let mut texts = 0;
        for piece in pieces {
            if piece.get("Sequence").is_some() {
                texts += 1;
                continue;
            }
            let Some(name) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) else {
                return Err(invalid("single", "expected `SpecialToken` or `Sequence` in each piece".into()));
            };
            let ids = step.get("special_tokens").and_then(|tokens| tokens.get(name)).and_then(|token| token.get("ids"));
            let ids = ids.and_then(Value::as_array).map(|ids| ids.iter().map(|id| u32::try_from(id.as_u64()?).ok()));
            let ids = ids.and_then(Iterator::collect::<Option<Vec<u32>>>);
            let ids = ids.filter(|ids| ids.iter().all(|id| *id <= MAX_ID)).ok_or_else(|| {
                invalid("special_tokens", format!("has no ids for `{name:.40}`, which `single` names"))
            })?;
            if texts == 0 { leading.extend(ids) } else { trailing.extend(ids) }
        }
        if texts != 1 {
            return Err(invalid("single", format!("has the text {texts} times")));
        }
        leading.append(&mut self.leading);
        self.leading = leading;
        self.trailing.extend(trailing);
        Ok(())
    }
}

fn refuse<T>(key: &str, found: &str, help: &'static str) -> Result<T> {
    let found: String = found.chars().take(80).collect();
    Err(Error::unsupported(TOKENIZER_JSON, &format!("{key}.type"), found, help))
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or("an object without a type")
}

/// The steps of a component with their keys: one, none, or those of a `Sequence`.
fn steps(key: &str, list: &str, json: Option<&RawValue>) -> Result<Vec<(String, Value)>> {
    let Some(json) = json else { return Ok(Vec::new()) };
    if json.get().len() > MAX_BYTES {
        let [has, most] = compared(json.get().len() as u64, MAX_BYTES as u64);
        let problem = format!("has {has}, more than {most}");
        return Err(Error::invalid(TOKENIZER_JSON, key, problem));
    }
    let mut json: Value = serde_json::from_str(json.get()).map_err(|e| Error::invalid(TOKENIZER_JSON, key, e))?;
    if json.is_null() {
        return Ok(Vec::new());
    }
    if kind(&json) != "Sequence" {
        return Ok(vec![(key.into(), json)]);
    }
    match json.get_mut(list).map(Value::take) {
        Some(Value::Array(steps)) if steps.len() <= MAX_STEPS => {
            let name = |(i, step)| (format!("{key}.{list}[{i}]"), step);
            Ok(steps.into_iter().enumerate().map(name).collect())
        }
        Some(Value::Array(steps)) => {
            let problem = format!("has {} steps, more than {MAX_STEPS}", steps.len());
            Err(Error::invalid(TOKENIZER_JSON, &format!("{key}.{list}"), problem))
        }
        _ => Err(Error::invalid(TOKENIZER_JSON, &format!("{key}.{list}"), "expected a list of steps")),
    }
}

fn split(key: &str, step: &Value) -> Result<LinearSplit> {
    let invalid = |name: &str, problem: &str| Error::invalid(TOKENIZER_JSON, &format!("{key}.{name}"), problem);
    let regex = step.pointer("/pattern/Regex").and_then(Value::as_str);
    let text = step.pointer("/pattern/String").and_then(Value::as_str);
    let pattern = match (regex, text) {
        (Some(regex), _) => regex.to_owned(),
        (None, Some(text)) => escape(text),
        (None, None) => return Err(invalid("pattern", "expected an object with `Regex` or `String`")),
    };
    if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
        let problem = format!("has {} bytes; 1 to {MAX_PATTERN_BYTES} are allowed", pattern.len());
        return Err(invalid("pattern", &problem));
    }
    let is_inverted = step.get("invert").is_some_and(|invert| invert == &Value::Bool(true));
    let split = LinearSplit::new(&pattern).ok_or_else(|| {
        let help = "patterns of linear time are, and the look-ahead with which Qwen's ends; it may be too large, too";
        Error::unsupported(TOKENIZER_JSON, &format!("{key}.pattern"), format!("`{pattern:.80}`"), help)
    })?;
    match (step.get("behavior").and_then(Value::as_str), is_inverted) {
        (Some("Isolated"), _) => Ok(split),
        (Some("Removed"), true) => Ok(split.keeping_matches()),
        (behavior, _) => {
            let found = format!("{} with invert {is_inverted}", behavior.unwrap_or("none"));
            let help = "Isolated, and Removed with invert true, are";
            Err(Error::unsupported(TOKENIZER_JSON, &format!("{key}.behavior"), found, help))
        }
    }
}

/// A pattern for just this text.
fn escape(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
