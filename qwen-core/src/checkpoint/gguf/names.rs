//! The names of a model's tensors in GGUF files, and the corresponding names in published safetensors checkpoints,
//! which the model uses.

/// Tensors that exist once: GGUF's name, the published name.
const SINGLE: [(&str, &str); 3] =
    [("token_embd.weight", EMBED_TOKENS), ("output_norm.weight", "model.norm.weight"), ("output.weight", LM_HEAD)];

/// Tensors of a layer, after `blk.N.` in GGUF and after `model.layers.N.` elsewhere.
pub(crate) const OF_LAYER: [(&str, &str); 12] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

/// The published name of the embedding table.
pub(crate) const EMBED_TOKENS: &str = "model.embed_tokens.weight";

/// The published name of the output head.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// The published name of the tensor that GGUF files call `name`; `None` for one that a model of `layers` layers does
/// not use.
pub(super) fn published(name: &str, layers: usize) -> Option<String> {
    if let Some((_, published)) = SINGLE.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*published).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    // Only the canonical form: `+1` and `01` are not layer 1, which would then have two names.
    let number: usize = layer.parse().ok().filter(|number: &usize| *number < layers && number.to_string() == layer)?;
    let (_, published) = OF_LAYER.iter().find(|(gguf, _)| *gguf == rest)?;
    Some(format!("model.layers.{number}.{published}"))
}

/// The GGUF name of the tensor with this published name.
pub(crate) fn gguf(published: &str) -> Option<String> {
    if let Some((gguf, _)) = SINGLE.iter().find(|(_, name)| *name == published) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = published.strip_prefix("model.layers.")?.split_once('.')?;
    let (gguf, _) = OF_LAYER.iter().find(|(_, name)| *name == rest)?;
    Some(format!("blk.{layer}.{gguf}"))
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let of_layer = OF_LAYER.iter().flat_map(|(name, _)| [0, 7, 23].map(|layer| format!("blk.{layer}.{name}")));
        for name in SINGLE.iter().map(|(name, _)| (*name).to_owned()).chain(of_layer) {
            let published = published(&name, 24).expect("a known name");
            assert_eq!(gguf(&published), Some(name));
        }
        assert_eq!(published("blk.3.attn_output.weight", 4).as_deref(), Some("model.layers.3.self_attn.o_proj.weight"));
    }

    #[test]
    fn other_names_are_no_tensors_of_the_model() {
        for name in [
            "blk.4.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.-1.attn_q.weight",
            "blk.18446744073709551616.attn_q.weight",
            "blk.1.attn_output.bias",
            "blk.1.attn_q.weight.scale",
            "blk.attn_q.weight",
            "rope_freqs.weight",
            "output.bias",
            "",
        ] {
            assert_eq!(published(name, 4), None, "{name}");
        }
        assert_eq!(gguf("model.layers.0.mlp.gate_proj.bias"), None);
    }
}
