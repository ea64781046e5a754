//! Tensor names in safetensors files: the published ones, and the variants that result from saving a part of a model or
//! a wrapper around it. Also which names a model uses.

use super::config::Config;
use super::gguf::names::{EMBED_TOKENS, LM_HEAD, OF_LAYER};
use super::header::TensorInfo;

/// The published name of the norm before the output head.
const NORM: &str = "model.norm.weight";

/// Prefixes that wrappers add, in any order and number: `base_model.model.model.norm.weight`.
const WRAPPERS: [&str; 8] = [
    "model.",
    "module.",
    "base_model.",
    "language_model.",
    "transformer.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_forward_module.",
];

/// Parts that wrappers of single layers insert anywhere in a name.
const LAYER_WRAPPERS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];

/// The last parts of the names of a packed matrix.
const PACKED: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// The tensor under its published name, with the file's name as its alias if they differ. A name that matches no
/// published tensor stays as it is.
pub(super) fn published(info: TensorInfo) -> TensorInfo {
    match published_name(&info.name) {
        Some(name) if name != info.name => TensorInfo { alias: Some(info.name), name, ..info },
        _ => info,
    }
}

/// The published name of the tensor that a file calls `stored`, if it can be recognised.
pub(super) fn published_name(stored: &str) -> Option<String> {
    let mut name = stored;
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    let mut name = name.to_owned();
    for wrapper in LAYER_WRAPPERS {
        name = name.replace(wrapper, "");
    }
    if name.starts_with("lm_head.") {
        return Some(name);
    }
    let in_model = ["layers.", "embed_tokens.", "norm."].iter().any(|part| name.starts_with(part));
    in_model.then(|| format!("model.{name}"))
}

/// What to do with an adapter.
pub(super) const MERGE: &str =
    "adapters are not applied: merge it into its model and save that (peft's merge_and_unload does it)";

/// What a name means to a model of this configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The model uses it.
    Needed,
    /// It can be ignored without changing the results.
    Derived,
    /// A bias of a module that has none in this family; harmless if it is all zeros.
    Bias,
    /// Left by an adapter that was not merged.
    Adapter,
    /// A norm of queries or keys, which other families have.
    HeadNorm,
    /// Anything else.
    Unknown,
}

/// What the published name `name` means to a model of `config`.
pub(super) fn meaning(name: &str, config: &Config) -> Use {
    if [".lora_", ".base_layer.", ".modules_to_save.", ".ia3_", ".oft_", ".hada_"]
        .iter()
        .any(|part| name.contains(part))
    {
        return Use::Adapter;
    }
    if name.ends_with("rotary_emb.inv_freq") {
        return Use::Derived;
    }
    if name == EMBED_TOKENS || name == NORM {
        return Use::Needed;
    }
    if let Some(rest) = name.strip_prefix("lm_head.") {
        return match rest {
            "bias" => Use::Bias,
            _ if !config.tie_word_embeddings && (name == LM_HEAD || PACKED.contains(&rest)) => Use::Needed,
            _ => Use::Unknown,
        };
    }
    let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return if name == "model.norm.bias" { Use::Bias } else { Use::Unknown };
    };
    // Only the canonical form: `01` is not layer 1.
    let number = layer.parse().ok().filter(|number: &usize| number.to_string() == layer);
    if number.is_none_or(|number| number >= config.num_hidden_layers) {
        return Use::Unknown;
    }
    let of_layer = |name: &str| OF_LAYER.iter().any(|(_, published)| *published == name);
    let (module, part) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let is_module = of_layer(&format!("{module}.weight"));
    match part {
        _ if of_layer(rest) => Use::Needed,
        _ if is_module && module.ends_with("_proj") && PACKED.contains(&part) => Use::Needed,
        "bias" if is_module => Use::Bias,
        _ if ["self_attn.q_norm.", "self_attn.k_norm."].iter().any(|norm| rest.starts_with(norm)) => Use::HeadNorm,
        _ => Use::Unknown,
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn config() -> Config {
        let json = r#"{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": 300, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
            "rope_theta": 1e6, "tie_word_embeddings": true}"#;
        Config::from_json("config.json", json).unwrap()
    }

    #[test]
    fn wrappers_leave_the_published_name() {
        for (stored, expected) in [
            ("model.norm.weight", Some("model.norm.weight")),
            ("norm.weight", Some("model.norm.weight")),
            ("embed_tokens.weight", Some("model.embed_tokens.weight")),
            ("layers.0.mlp.up_proj.weight", Some("model.layers.0.mlp.up_proj.weight")),
            ("module.model.layers.0.mlp.up_proj.weight", Some("model.layers.0.mlp.up_proj.weight")),
            ("base_model.model.model.embed_tokens.weight", Some("model.embed_tokens.weight")),
            ("base_model.model.lm_head.weight", Some("lm_head.weight")),
            ("language_model.model.norm.weight", Some("model.norm.weight")),
            ("model.language_model.norm.weight", Some("model.norm.weight")),
            ("transformer.layers.1.self_attn.q_proj.bias", Some("model.layers.1.self_attn.q_proj.bias")),
            ("_orig_mod.lm_head.weight", Some("lm_head.weight")),
            ("model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight", Some("model.layers.0.mlp.up_proj.weight")),
            ("layers.0.mlp.up_proj.qweight", Some("model.layers.0.mlp.up_proj.qweight")),
            ("transformer.h.0.attn.c_attn.weight", None),
            ("visual.blocks.0.norm1.weight", None),
            ("v_head.summary.weight", None),
            ("normal.weight", None),
            ("model.", None),
            ("", None),
        ] {
            assert_eq!(published_name(stored).as_deref(), expected, "{stored}");
        }
    }

    #[test]
    fn names_mean_what_the_configuration_makes_of_them() {
        let tied = config();
        let untied = Config { tie_word_embeddings: false, ..tied.clone() };
        for (name, expected) in [
            ("model.embed_tokens.weight", Use::Needed),
            ("model.layers.1.self_attn.k_proj.bias", Use::Needed),
            ("model.layers.1.self_attn.k_proj.qzeros", Use::Needed),
            ("model.layers.1.input_layernorm.scales", Use::Unknown),
            ("model.layers.2.self_attn.k_proj.bias", Use::Unknown),
            ("model.layers.01.self_attn.k_proj.bias", Use::Unknown),
            ("model.layers.1.self_attn.o_proj.bias", Use::Bias),
            ("model.layers.1.mlp.up_proj.bias", Use::Bias),
            ("model.layers.1.input_layernorm.bias", Use::Bias),
            ("model.norm.bias", Use::Bias),
            ("lm_head.bias", Use::Bias),
            ("model.layers.1.self_attn.q_norm.weight", Use::HeadNorm),
            ("model.layers.1.self_attn.q_proj.lora_A.weight", Use::Adapter),
            ("model.layers.1.self_attn.q_proj.base_layer.weight", Use::Adapter),
            ("model.layers.1.self_attn.rotary_emb.inv_freq", Use::Derived),
            ("rotary_emb.inv_freq", Use::Derived),
            ("v_head.weight", Use::Unknown),
            ("lm_head.weight", Use::Unknown),
        ] {
            assert_eq!(meaning(name, &tied), expected, "{name}");
        }
        assert_eq!(meaning("lm_head.weight", &untied), Use::Needed);
        assert_eq!(meaning("lm_head.qweight", &untied), Use::Needed);
    }
}
