//! Rotary position embedding: the angle of each pair of dimensions at each position, as cos and sin.
//!
//! Rotation itself is an operation of the backend. Its tables are computed here, in f64 throughout and rounded once to
//! f32: near position 131,071 angles computed in f32 are off by up to 6e-3, while these are as accurate there as at 0.
//!
//! A head of width d is rotated in d/2 planes; plane i pairs elements i and i + d/2 and turns by `theta^(-2i/d)` radians
//! a position ("RoFormer", arXiv 2104.09864). [`RopeScaling::Yarn`] (arXiv 2309.00071, section 3.2, "NTK-by-parts")
//! leaves planes that turn often over the trained context as they are, divides the frequency of planes that never
//! complete a turn by the factor, and blends in between. Attention is then sharpened by scaling cos and sin (section
//! 3.4), which affects both q and k.

use std::f64::consts::TAU;

use crate::checkpoint::config::{Config, RopeScaling, Yarn};

/// Inverse frequencies of a model, and the factor on its cos and sin.
///
/// ```
/// use qwen_core::{Config, Rope};
///
/// # let json = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
/// #     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-06,
/// #     "max_position_embeddings": 32768, "rope_theta": 1000000.0}"#;
/// let config = Config::from_json("config.json", json)?;
/// let rope = Rope::new(&config);
/// let mut row = vec![0.0; config.head_dim];
/// rope.cos_sin(1, &mut row);
/// let (cos, sin) = row.split_at(config.head_dim / 2);
/// assert_eq!(cos[0], 1f64.cos() as f32);
/// assert_eq!(sin[0], 1f64.sin() as f32);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    inv_freq: Vec<f64>,
    attention_factor: f64,
}

impl Rope {
    /// The frequencies for `config`; if they depend on the length of a sequence, those of the shortest (see
    /// [`RopeStages`]).
    pub fn new(config: &Config) -> Self {
        match &config.rope_scaling {
            RopeScaling::None | RopeScaling::Auto(_) => Rope::scaled(config, None),
            RopeScaling::Yarn(yarn) => Rope::scaled(config, Some(yarn)),
        }
    }

    fn scaled(config: &Config, yarn: Option<&Yarn>) -> Self {
        let dim = config.head_dim as f64;
        let plain = (0..config.head_dim / 2).map(|i| config.rope_theta.powf(2.0 * i as f64 / dim).recip());
        match yarn {
            None => Rope { inv_freq: plain.collect(), attention_factor: 1.0 },
            Some(yarn) => {
                let (low, high) = correction_range(yarn, dim, config.rope_theta);
                // transformers keeps the ramp from dividing by zero in the same way.
                let width = if low == high { 0.001 } else { high - low };
                let stretched = plain.enumerate().map(|(i, inv_freq)| {
                    let keep = 1.0 - ((i as f64 - low) / width).clamp(0.0, 1.0);
                    inv_freq / yarn.factor * (1.0 - keep) + inv_freq * keep
                });
                Rope { inv_freq: stretched.collect(), attention_factor: yarn.attention_factor() }
            }
        }
    }

    /// Radians that each pair of dimensions turns by from one position to the next: `head_dim / 2` of them.
    pub fn inv_freq(&self) -> &[f64] {
        &self.inv_freq
    }

    /// The factor on every cos and sin: 1 without YaRN.
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// The row of `position`: `head_dim / 2` cos, then as many sin.
    ///
    /// # Panics
    /// If `out` is not `head_dim` long.
    pub fn cos_sin(&self, position: usize, out: &mut [f32]) {
        let half = self.inv_freq.len();
        assert_eq!(out.len(), 2 * half, "a row of cos and sin is head_dim long");
        let (cos, sin) = out.split_at_mut(half);
        for ((cos, sin), inv_freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
            let (s, c) = (position as f64 * inv_freq).sin_cos();
            *cos = (c * self.attention_factor) as f32;
            *sin = (s * self.attention_factor) as f32;
        }
    }
}

/// The rotary frequencies for sequences of each length: one [`Rope`] for all of them, or with [`RopeScaling::Auto`] one
/// for each factor. A sequence keeps its stage as long as it runs, since K/V that was stored with another one does not fit.
///
/// ```
/// use qwen_core::{Config, Rope, model::rope::RopeStages};
///
/// # let json = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
/// #     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-06,
/// #     "max_position_embeddings": 32768, "rope_theta": 1000000.0}"#;
/// let config = Config::from_json("config.json", json)?;
/// let stages = RopeStages::new(&config.clone().with_auto_yarn(3.5)?);
/// assert_eq!(stages.contexts(), [32768, 65536, 98304, 114688]);
/// assert_eq!(stages.get(0), Some(&Rope::new(&config)));
/// assert_eq!(stages.get(1), Some(&Rope::new(&config.with_yarn(2.0)?)));
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RopeStages {
    ropes: Vec<Rope>,
    contexts: Vec<usize>,
}

impl RopeStages {
    /// The most stages: above this factor, not every whole number is one.
    const MOST: f64 = 64.0;

    /// The stages for `config`.
    pub fn new(config: &Config) -> Self {
        let RopeScaling::Auto(most) = &config.rope_scaling else {
            return RopeStages { ropes: vec![Rope::new(config)], contexts: vec![config.max_context()] };
        };
        let (mut ropes, mut contexts) = (vec![Rope::scaled(config, None)], vec![most.original_max_position_embeddings]);
        let step = (most.factor / Self::MOST).ceil().max(1.0);
        let mut factor = 1.0;
        while factor < most.factor {
            factor = (factor + step).min(most.factor);
            // A written attention factor belongs to the written factor.
            let attention_factor = most.attention_factor.filter(|_| factor == most.factor);
            let yarn = Yarn { factor, attention_factor, ..*most };
            ropes.push(Rope::scaled(config, Some(&yarn)));
            contexts.push(yarn.max_context());
        }
        RopeStages { ropes, contexts }
    }

    /// The most positions of a sequence in each stage, in ascending order.
    pub fn contexts(&self) -> &[usize] {
        &self.contexts
    }

    /// The frequencies of a stage.
    pub fn get(&self, stage: usize) -> Option<&Rope> {
        self.ropes.get(stage)
    }
}

/// The first stage, of those that reach up to `contexts`, that holds `len` positions; the last one if none does.
pub(crate) fn stage_reaching(contexts: &[usize], len: usize) -> usize {
    contexts.iter().position(|context| *context >= len).unwrap_or(contexts.len().saturating_sub(1))
}

/// The planes between which YaRN's ramp runs: before the first all keep their frequency, after the last none does.
fn correction_range(yarn: &Yarn, dim: f64, theta: f64) -> (f64, f64) {
    // The plane that completes `turns` turns over the original context.
    let original = yarn.original_max_position_embeddings as f64;
    let plane = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (low, high) = (plane(yarn.beta_fast), plane(yarn.beta_slow));
    let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    (low.max(0.0), high.min(dim - 1.0))
}
