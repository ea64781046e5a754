//! `adapter_config.json`: what a low-rank adapter is made of, and everything that it may ask for and that is not applied.
//!
//! Each kind of adapter that changes more than low-rank products (DoRA, saved modules, biases, ...) is refused here by its
//! key: applied in part, it would answer, but not as it was trained.

use std::path::Path;

use serde_json::Value;

use super::pattern::{Pattern, Targets};
use crate::checkpoint::json::{self, Fields};
use crate::error::Result;

/// The largest rank that is read.
const MAX_RANK: usize = 1 << 14;

/// Initialisations that change the weights of the model: without these the adapter means something else.
const CHANGES_THE_MODEL: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Keys that are applied here, and keys without effect on a trained adapter's results.
const KNOWN: [&str; 23] = [
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
    // The low-rank parts of a linear layer are stored in one order, whatever it says.
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "peft_version",
    "runtime_config",
    "ensure_weight_tying",
    // Only looked at while an adapter is made.
    "eva_config",
];

/// `adapter_config.json`, checked: only what can be applied exactly.
///
/// ```
/// use qwen_core::checkpoint::LoraConfig;
/// let config = LoraConfig::from_json("adapter_config.json", r#"{
///     "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]
/// }"#)?;
/// assert_eq!(config.scale("model.layers.0.self_attn.q_proj"), 2.0);
/// let dora = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "use_dora": true}"#;
/// assert!(LoraConfig::from_json("adapter_config.json", dora).unwrap_err().to_string().contains("use_dora"));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LoraConfig {
    r: usize,
    lora_alpha: f64,
    use_rslora: bool,
    rank_pattern: Vec<(Pattern, usize)>,
    alpha_pattern: Vec<(Pattern, f64)>,
    targets: Targets,
}

impl LoraConfig {
    /// Read and check the file.
    pub(super) fn from_file(path: &Path) -> Result<Self> {
        LoraConfig::from_json(path, &json::read_config(path)?)
    }

    /// Parse and check the text of `adapter_config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// [`crate::Error::InvalidFile`] and [`crate::Error::InvalidConfig`] for what is malformed;
    /// [`crate::Error::Unsupported`] with the key for what is not applied.
    pub fn from_json(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        let path = path.as_ref();
        let value = json::parse(path, text)?;
        let fields = Fields::root(path, &value)?;
        refuse(&fields)?;
        let r = fields.required("r", fields.usize("r", 1, MAX_RANK)?)?;
        let lora_alpha = fields.required("lora_alpha", fields.f64("lora_alpha", -1e9, 1e9)?)?;
        Ok(LoraConfig {
            r,
            lora_alpha,
            use_rslora: fields.bool("use_rslora")?.unwrap_or(false),
            rank_pattern: by_pattern(&fields, "rank_pattern", |of, key| of.usize(key, 1, MAX_RANK))?,
            alpha_pattern: by_pattern(&fields, "alpha_pattern", |of, key| of.f64(key, -1e9, 1e9))?,
            targets: Targets::from_fields(&fields)?,
        })
    }

    /// The rank of the module `name`, such as `model.layers.0.self_attn.q_proj`.
    pub fn rank(&self, name: &str) -> usize {
        first(&self.rank_pattern, name).unwrap_or(self.r)
    }

    /// What the module's low-rank product is multiplied with: `lora_alpha / r`, or `lora_alpha / sqrt(r)` with
    /// `use_rslora`.
    pub fn scale(&self, name: &str) -> f64 {
        let alpha = first(&self.alpha_pattern, name).unwrap_or(self.lora_alpha);
        let rank = self.rank(name) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Whether the adapter is said to have a part for the module `name`; `None` if the file says it by an expression that
    /// is not understood here, and the tensors have to tell.
    pub(super) fn targets(&self, name: &str) -> Option<bool> {
        self.targets.has(name)
    }
}

/// The value of the first pattern that matches, as in PEFT.
fn first<T: Copy>(patterns: &[(Pattern, T)], name: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.ends(name)).map(|(_, value)| *value)
}

fn by_pattern<T>(
    fields: &Fields<'_>,
    key: &str,
    read: impl Fn(&Fields<'_>, &str) -> Result<Option<T>>,
) -> Result<Vec<(Pattern, T)>> {
    let Some(patterns) = fields.object(key)? else { return Ok(Vec::new()) };
    let mut read_all = Vec::new();
    for (pattern, _) in patterns.entries() {
        let value = patterns.required(pattern, read(&patterns, pattern)?)?;
        let compiled = Pattern::ending(pattern).map_err(|reason| patterns.error(pattern, reason))?;
        read_all.push((compiled, value));
    }
    Ok(read_all)
}

/// Refuse what would change results and is not applied.
fn refuse(fields: &Fields<'_>) -> Result<()> {
    let advice =
        "only plain low-rank adapters are applied: merge it into its model (peft's merge_and_unload) and load that";
    match fields.str("peft_type")? {
        Some("LORA") => {}
        Some(other) => return Err(fields.unsupported("peft_type", &format!("an adapter of type {other}"), advice)),
        None => return Err(fields.error("peft_type", "is missing: not the configuration of an adapter")),
    }
    if let Some(bias) = fields.str("bias")?.filter(|bias| *bias != "none") {
        return Err(fields.unsupported("bias", &format!("an adapter with bias `{bias}`"), advice));
    }
    let init = match fields.get("init_lora_weights") {
        Some(Value::String(init)) => init.to_ascii_lowercase(),
        _ => String::new(),
    };
    if CHANGES_THE_MODEL.iter().any(|changing| init.starts_with(changing)) {
        let what = format!("an adapter initialised by `{init}`");
        let reason = "such an adapter goes with weights that were changed when it was made: convert it with peft \
                      (path_initial_model_for_weight_conversion), or merge it";
        return Err(fields.unsupported("init_lora_weights", &what, reason));
    }
    for (key, what) in [
        ("use_dora", "DoRA"),
        ("lora_bias", "an adapter with biases of its own"),
        ("modules_to_save", "an adapter with whole modules"),
        ("layer_replication", "an adapter that repeats layers"),
        ("alora_invocation_tokens", "an activated adapter (aLoRA)"),
        ("trainable_token_indices", "an adapter with token embeddings"),
        ("target_parameters", "an adapter of parameters without a module"),
        ("use_qalora", "QALoRA"),
        ("use_bdlora", "an adapter with block-diagonal parts"),
        ("arrow_config", "an adapter that chooses among others"),
        ("megatron_config", "an adapter of Megatron's layers"),
    ] {
        if fields.get(key).is_some_and(says_something) {
            return Err(fields.unsupported(key, what, advice));
        }
    }
    // What later versions add: parameters of what is off do no harm.
    for (key, value) in fields.entries() {
        let is_new = !KNOWN.contains(&key.as_str());
        if is_new && (*value == Value::Bool(true) || value.is_array() || value.is_object()) && says_something(value) {
            // The method's own parameters go with an initialisation that was refused above.
            if ["corda_config", "loftq_config", "lora_ga_config"].contains(&key.as_str()) {
                continue;
            }
            return Err(fields.unsupported(key, "an adapter with this key", advice));
        }
    }
    Ok(())
}

/// Whether a value is other than null, false and empty.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}
