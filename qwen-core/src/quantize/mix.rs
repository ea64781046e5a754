//! Which tensor of a model gets which encoding.
//!
//! The rules and their names are those of llama.cpp's `llama-quantize` for this architecture, so that a file with the
//! same mix has the same size and quality from either program.

use std::fmt;
use std::str::FromStr;

use crate::checkpoint::gguf::names::{EMBED_TOKENS, LM_HEAD};
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// Which tensor of a model gets which encoding.
///
/// Norms and biases are always F32. The output head (or the embedding table of a tied model) has at least Q6_K, since
/// the choice of every token depends on it. If rows are not a multiple of a format's block, the tensor gets a similar
/// format of at least as many bits: Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K, Q4_0 for Q2_K and Q3_K, IQ4_NL for
/// IQ4_XS, and F16 for rows that are not a multiple of 32.
///
/// ```
/// use qwen_core::Encoding;
/// use qwen_core::quantize::{ModelFacts, TensorMix};
///
/// let mix: TensorMix = "q4_k_m".parse()?;
/// let facts = ModelFacts { num_hidden_layers: 24, tied: true, has_importances: false };
/// assert_eq!(mix.encoding("model.layers.0.mlp.down_proj.weight", 4864, facts), Encoding::Q6K);
/// assert_eq!(mix.encoding("model.layers.4.mlp.down_proj.weight", 4864, facts), Encoding::Q4K);
/// assert_eq!(mix.encoding("model.layers.4.mlp.up_proj.weight", 896, facts), Encoding::Q5_0);
/// assert_eq!(mix.encoding("model.embed_tokens.weight", 896, facts), Encoding::Q8_0);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TensorMix {
    /// One encoding for all matrices except the head.
    Uniform(Encoding),
    /// Q4_K, with Q5_K for the values of the first four layers and for the MLP's output in the first eighth.
    Q4KS,
    /// Q4_K, with Q6_K for values and for the MLP's output in the first and last eighth of the layers and in every third
    /// one between.
    Q4KM,
    /// Q5_K, with Q6_K in the same places as [`TensorMix::Q4KM`].
    Q5KM,
}

/// What a mix has to know about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelFacts {
    /// Its layers.
    pub num_hidden_layers: usize,
    /// Whether the embedding table is the output head.
    pub tied: bool,
    /// Whether the errors of columns are weighted by importances.
    pub has_importances: bool,
}

/// The supported mixes, with their names in `llama-quantize` and their numbers in `general.file_type`.
const NAMED: [(&str, TensorMix, u32); 14] = [
    ("f32", TensorMix::Uniform(Encoding::F32), 0),
    ("f16", TensorMix::Uniform(Encoding::F16), 1),
    ("bf16", TensorMix::Uniform(Encoding::Bf16), 32),
    ("q8_0", TensorMix::Uniform(Encoding::Q8_0), 7),
    ("q6_k", TensorMix::Uniform(Encoding::Q6K), 18),
    ("q5_k_m", TensorMix::Q5KM, 17),
    ("q5_k_s", TensorMix::Uniform(Encoding::Q5K), 16),
    ("q5_1", TensorMix::Uniform(Encoding::Q5_1), 9),
    ("q5_0", TensorMix::Uniform(Encoding::Q5_0), 8),
    ("q4_k_m", TensorMix::Q4KM, 15),
    ("q4_k_s", TensorMix::Q4KS, 14),
    ("q4_1", TensorMix::Uniform(Encoding::Q4_1), 3),
    ("q4_0", TensorMix::Uniform(Encoding::Q4_0), 2),
    ("q3_k_s", TensorMix::Uniform(Encoding::Q3K), 11),
];

/// Layers of the 72B model, whose value projections get more bits, since eight query heads share them.
const LAYERS_OF_72B: usize = 80;

/// The kinds of tensors that mixes distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The output head, or the embedding table of a tied model.
    Head,
    /// The embedding table of an untied model.
    Table,
    /// The value projection of this layer.
    Value(usize),
    /// The down projection of this layer.
    Down(usize),
    Other,
}

impl TensorMix {
    /// The encoding of the matrix with the published name `name` and `cols` columns.
    pub fn encoding(self, name: &str, cols: usize, facts: ModelFacts) -> Encoding {
        let base = self.base();
        let layers = facts.num_hidden_layers;
        let wanted = match (kind(name, facts.tied), self) {
            (Kind::Head, _) if base.block().values == 1 || base == Encoding::Q8_0 => base,
            // If its rows are not whole blocks, the head keeps its bits, whatever the fallback of other tensors is.
            (Kind::Head, _) if base.row_bytes(cols).is_none() => Encoding::Q8_0,
            (Kind::Head, _) => Encoding::Q6K,
            (Kind::Table | Kind::Other, _) => base,
            (Kind::Value(layer) | Kind::Down(layer), Self::Q4KM | Self::Q5KM) if gets_more_bits(layer, layers) => {
                Encoding::Q6K
            }
            (Kind::Value(0..4), Self::Q4KS) => Encoding::Q5K,
            (Kind::Down(layer), Self::Q4KS) if layer < layers / 8 => Encoding::Q5K,
            (Kind::Value(_), _) if layers == LAYERS_OF_72B && matches!(base, Encoding::Q3K | Encoding::Q4K) => {
                Encoding::Q5K
            }
            // With importances these two have large errors on the few large channels of the first layers.
            (Kind::Down(layer), Self::Uniform(Encoding::Q4_0)) if facts.has_importances && layer < layers / 8 => {
                Encoding::Q4_1
            }
            (Kind::Down(layer), Self::Uniform(Encoding::Q5_0)) if facts.has_importances && layer < layers / 8 => {
                Encoding::Q5_1
            }
            (Kind::Value(_) | Kind::Down(_), _) => base,
        };
        fitting(wanted, cols)
    }

    /// The encoding of most matrices.
    pub fn base(self) -> Encoding {
        match self {
            Self::Uniform(encoding) => encoding,
            Self::Q4KS | Self::Q4KM => Encoding::Q4K,
            Self::Q5KM => Encoding::Q5K,
        }
    }

    /// The number of the mix in `general.file_type` of GGUF files, if it has one.
    pub fn file_type(self) -> Option<u32> {
        NAMED.iter().find(|(_, mix, _)| *mix == self).map(|(.., number)| *number)
    }

    /// The names of all mixes, as parsed.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, ..)| *name)
    }

    /// Refuse encodings without a quantiser.
    pub(crate) fn check(self) -> Result<()> {
        self.base().quantize_row(&[], None, &mut Vec::new())
    }
}

fn kind(name: &str, tied: bool) -> Kind {
    match name {
        LM_HEAD => return Kind::Head,
        EMBED_TOKENS => return if tied { Kind::Head } else { Kind::Table },
        _ => {}
    }
    let of_layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    match of_layer.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) {
        Some((layer, "self_attn.v_proj.weight")) => Kind::Value(layer),
        Some((layer, "mlp.down_proj.weight")) => Kind::Down(layer),
        _ => Kind::Other,
    }
}

/// Whether a layer is one of those whose errors cost most: at both ends, and every third in between.
fn gets_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The encoding, or its fallback for rows that are not whole blocks.
fn fitting(wanted: Encoding, cols: usize) -> Encoding {
    let fits = |encoding: &Encoding| encoding.row_bytes(cols).is_some();
    let smaller = match wanted {
        Encoding::Q2K | Encoding::Q3K => Encoding::Q4_0,
        Encoding::Q4K => Encoding::Q5_0,
        Encoding::Q5K => Encoding::Q5_1,
        Encoding::Q6K => Encoding::Q8_0,
        Encoding::Iq4Xs => Encoding::Iq4Nl,
        _ => wanted,
    };
    [wanted, smaller].into_iter().find(fits).unwrap_or(Encoding::F16)
}

impl fmt::Display for TensorMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (NAMED.iter().find(|(_, mix, _)| mix == self), self.base()) {
            (Some((name, ..)), _) => f.write_str(name),
            (None, encoding) => write!(f, "{}", encoding.to_string().to_lowercase()),
        }
    }
}

serde_by_text!(TensorMix);

/// Parses the name of a mix in `llama-quantize`, in any case.
impl FromStr for TensorMix {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = NAMED.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
        named.map(|(_, mix, _)| *mix).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            Error::argument("mix", format!("`{name}` is not one of {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn facts(layers: usize, tied: bool) -> ModelFacts {
        ModelFacts { num_hidden_layers: layers, tied, has_importances: false }
    }

    /// The layers in which the two kinds of tensors get more bits, in a model of `layers`.
    fn raised(mix: TensorMix, tensor: &str, layers: usize) -> Vec<usize> {
        let encoding = |layer| mix.encoding(&format!("model.layers.{layer}.{tensor}"), 2048, facts(layers, false));
        (0..layers).filter(|layer| encoding(*layer) != mix.base()).collect()
    }

    #[test]
    fn layers_at_both_ends_and_every_third_between_get_more_bits() {
        let of_24 = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23];
        for mix in [TensorMix::Q4KM, TensorMix::Q5KM] {
            assert_eq!(raised(mix, "self_attn.v_proj.weight", 24), of_24);
            assert_eq!(raised(mix, "mlp.down_proj.weight", 24), of_24);
            assert_eq!(raised(mix, "mlp.up_proj.weight", 24), [0; 0]);
        }
        assert_eq!(raised(TensorMix::Q4KM, "mlp.down_proj.weight", 6), [2, 5]);
        assert_eq!(raised(TensorMix::Q4KS, "self_attn.v_proj.weight", 24), [0, 1, 2, 3]);
        assert_eq!(raised(TensorMix::Q4KS, "mlp.down_proj.weight", 24), [0, 1, 2]);
        assert_eq!(raised(TensorMix::Q4KM, "self_attn.v_proj.weight", 80).len(), 80);
    }

    #[test]
    fn the_head_keeps_more_bits() {
        for (mix, cols, tied, head, table) in [
            (TensorMix::Q4KM, 2048, false, Encoding::Q6K, Encoding::Q4K),
            (TensorMix::Q4KM, 2048, true, Encoding::Q6K, Encoding::Q6K),
            (TensorMix::Q4KM, 896, true, Encoding::Q8_0, Encoding::Q8_0),
            (TensorMix::Q4KM, 896, false, Encoding::Q8_0, Encoding::Q5_0),
            (TensorMix::Uniform(Encoding::Q4_0), 896, false, Encoding::Q8_0, Encoding::Q4_0),
            (TensorMix::Uniform(Encoding::Q4_0), 1024, false, Encoding::Q6K, Encoding::Q4_0),
            (TensorMix::Uniform(Encoding::Q8_0), 1024, false, Encoding::Q8_0, Encoding::Q8_0),
            (TensorMix::Uniform(Encoding::F16), 1024, true, Encoding::F16, Encoding::F16),
        ] {
            assert_eq!(mix.encoding(LM_HEAD, cols, facts(24, tied)), head, "{mix} {cols}");
            assert_eq!(mix.encoding(EMBED_TOKENS, cols, facts(24, tied)), table, "{mix} {cols}");
        }
    }

    #[test]
    fn importances_move_the_first_layers_off_formats_without_a_minimum() {
        let name = "model.layers.2.mlp.down_proj.weight";
        for (encoding, other) in [(Encoding::Q4_0, Encoding::Q4_1), (Encoding::Q5_0, Encoding::Q5_1)] {
            let mix = TensorMix::Uniform(encoding);
            assert_eq!(mix.encoding(name, 1024, facts(24, true)), encoding);
            let facts = ModelFacts { has_importances: true, ..facts(24, true) };
            assert_eq!(mix.encoding(name, 1024, facts), other);
            assert_eq!(mix.encoding("model.layers.3.mlp.down_proj.weight", 1024, facts), encoding);
        }
    }

    #[test]
    fn names_go_both_ways() {
        for name in TensorMix::names() {
            let mix: TensorMix = name.to_uppercase().parse().unwrap();
            assert_eq!(mix.to_string(), name);
            assert!(mix.file_type().is_some());
            mix.check().unwrap();
        }
        let error = "q4_k".parse::<TensorMix>().unwrap_err().to_string();
        assert!(error.contains("`q4_k`") && error.contains("q4_k_m, q4_k_s"), "{error}");
        assert!(TensorMix::Uniform(Encoding::Iq2S).check().is_err());
    }
}
