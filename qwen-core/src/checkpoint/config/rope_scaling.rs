//! The rope keys of `config.json` in the old and the new style: the rotary frequencies of the checkpoint.
//!
//! Old files (transformers 4) write `rope_theta` and `rope_scaling` side by side at top level; new ones (5) nest both in
//! `rope_parameters`. The result is used in [`crate::model::rope`].

use crate::checkpoint::json::Fields;
use crate::error::Result;

/// Far above any published context.
pub(in crate::checkpoint) const MAX_POSITIONS: usize = 1 << 27;

/// How rotary frequencies are scaled beyond the context that the model was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling.
    #[default]
    None,
    /// YaRN: see [`Yarn`].
    Yarn(Yarn),
    /// YaRN by the length of each sequence: none within the original context, then as much as its length needs, up to this
    /// factor. No file says so; see [`Config::with_auto_yarn`](super::Config::with_auto_yarn).
    Auto(Yarn),
}

impl RopeScaling {
    /// The parameters of YaRN, if there is any.
    pub fn yarn(&self) -> Option<&Yarn> {
        match self {
            RopeScaling::None => None,
            RopeScaling::Yarn(yarn) | RopeScaling::Auto(yarn) => Some(yarn),
        }
    }
}

/// YaRN, "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071), with the keys that
/// transformers reads. It is static: once enabled it also applies to short texts, which is why Qwen2.5's model cards
/// advise it only if long ones are needed.
///
/// ```
/// use qwen_core::checkpoint::config::Yarn;
///
/// let yarn = Yarn::new(4.0, 32768);
/// assert_eq!(yarn.max_context(), 131072);
/// assert!((yarn.attention_factor() - 1.1386).abs() < 1e-4);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Yarn {
    /// By how much the context is extended. This value is used, whatever `max_position_embeddings` suggests.
    pub factor: f64,
    /// The context of training, which is extended.
    pub original_max_position_embeddings: usize,
    /// Dimensions with at least this many rotations over the original context keep their frequency.
    pub beta_fast: f64,
    /// Dimensions with at most this many rotations over the original context are fully interpolated.
    pub beta_slow: f64,
    /// Factor on cos and sin; computed from `factor` if the file has none.
    pub attention_factor: Option<f64>,
    /// With `mscale_all_dim`, another form of the attention factor.
    pub mscale: Option<f64>,
    /// With `mscale`, another form of the attention factor.
    pub mscale_all_dim: Option<f64>,
    /// Whether the ends of the ramp between both kinds of dimensions are rounded outwards to whole dimensions.
    pub truncate: bool,
}

impl Yarn {
    /// YaRN as on the model cards: all keys except the two required ones have the paper's values.
    pub fn new(factor: f64, original_max_position_embeddings: usize) -> Self {
        Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        }
    }

    /// Positions of the extended context: `factor * original_max_position_embeddings`.
    pub fn max_context(&self) -> usize {
        (self.factor * self.original_max_position_embeddings as f64) as usize
    }

    /// The factor on cos and sin: the one in the file, else the ratio of both `mscale`s, else the paper's
    /// `0.1 ln(factor) + 1`.
    pub fn attention_factor(&self) -> f64 {
        let mscale = |weight: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(written), _, _) => written,
            (None, Some(numerator), Some(denominator)) if numerator != 0.0 && denominator != 0.0 => {
                mscale(numerator) / mscale(denominator)
            }
            _ => mscale(1.0),
        }
    }

    /// The first field that is out of range, with the reason.
    pub(in crate::checkpoint) fn check(&self) -> Result<(), (&'static str, String)> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let bound = MAX_POSITIONS as f64;
        if !(1.0..=bound).contains(&self.factor) {
            return Err(("factor", format!("expected a number of at least 1, found {:?}", self.factor)));
        }
        if self.original_max_position_embeddings == 0
            || self.factor * self.original_max_position_embeddings as f64 > bound
        {
            let (factor, original) = (self.factor, self.original_max_position_embeddings);
            let reason =
                format!("{factor:?} times {original} positions is not a context of 1 to {MAX_POSITIONS} tokens");
            return Err(("original_max_position_embeddings", reason));
        }
        if !positive(self.beta_slow) {
            return Err(("beta_slow", format!("expected a number above 0, found {:?}", self.beta_slow)));
        }
        if !positive(self.beta_fast) || self.beta_fast < self.beta_slow {
            let (fast, slow) = (self.beta_fast, self.beta_slow);
            return Err(("beta_fast", format!("expected at least beta_slow ({slow:?}), found {fast:?}")));
        }
        // Beyond this cosines and sines would leave the range of f32, and no sane value is near it.
        let scales = |factor: f64| (1e-6..=1e6).contains(&factor);
        if self.attention_factor.is_some_and(|factor| !scales(factor)) {
            let reason = format!("expected a number of 1e-6 to 1e6, found {:?}", self.attention_factor);
            return Err(("attention_factor", reason));
        }
        if !scales(self.attention_factor()) {
            return Err(("mscale", format!("gives the attention factor {:?}", self.attention_factor())));
        }
        Ok(())
    }
}

/// `rope_theta` and the scaling, from wherever the file has them.
pub(super) fn parse(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<(f64, RopeScaling)> {
    let nested = fields.object("rope_parameters")?;
    let scaling = fields.object("rope_scaling")?;

    let mut theta = theta(fields)?;
    for object in nested.iter().chain(&scaling) {
        match (theta, self::theta(object)?) {
            (Some(outer), Some(inner)) if outer != inner => {
                return Err(
                    object.error("rope_theta", format!("is {inner:?} here and {outer:?} elsewhere in the file"))
                );
            }
            (outer, inner) => theta = outer.or(inner),
        }
    }
    let theta = fields.required("rope_theta", theta)?;

    let of = |object: Option<&Fields<'_>>| object.map_or(Ok(RopeScaling::None), |o| kind(o, max_position_embeddings));
    let scaling = match (of(nested.as_ref())?, of(scaling.as_ref())?) {
        (one, RopeScaling::None) => one,
        (RopeScaling::None, other) => other,
        (one, other) if one == other => one,
        _ => return Err(fields.error("rope_scaling", "contradicts `rope_parameters`: remove one of them")),
    };
    Ok((theta, scaling))
}

fn theta(fields: &Fields<'_>) -> Result<Option<f64>> {
    // At 1 and below, frequencies do not decrease; the correction range of YaRN divides by ln(theta).
    let theta = fields.f64("rope_theta", 1.0, 1e30)?;
    if theta == Some(1.0) {
        return Err(fields.error("rope_theta", "expected a number above 1, found 1"));
    }
    Ok(theta)
}

fn kind(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<RopeScaling> {
    // In transformers 4 `type` overrides `rope_type`, in 5 the reverse: a file where they differ is ambiguous.
    let (key, name) = match (fields.str("rope_type")?, fields.str("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(fields.error("rope_type", format!("is {new:?} while `type` is {old:?}: keep one of them")));
        }
        (Some(new), _) => ("rope_type", new),
        (None, Some(old)) => ("type", old),
        (None, None) if fields.get("factor").is_some() => {
            return Err(fields.error("rope_type", "is missing: a `factor` alone does not say how to scale"));
        }
        (None, None) => ("rope_type", "default"),
    };
    match name {
        "default" => Ok(RopeScaling::None),
        "yarn" => yarn(fields, max_position_embeddings).map(RopeScaling::Yarn),
        other => Err(fields.unsupported(
            key,
            &format!("rope type {other:?}"),
            "Qwen2.5 uses \"default\" and \"yarn\" alone: another one belongs to another model",
        )),
    }
}

fn yarn(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<Yarn> {
    const ANY: f64 = f64::MAX;
    let factor = fields.required("factor", fields.f64("factor", 1.0, ANY)?)?;
    let original = fields.usize("original_max_position_embeddings", 1, MAX_POSITIONS)?;
    let mut yarn = Yarn::new(factor, original.unwrap_or(max_position_embeddings));
    yarn.beta_fast = fields.f64("beta_fast", 0.0, ANY)?.unwrap_or(yarn.beta_fast);
    yarn.beta_slow = fields.f64("beta_slow", 0.0, ANY)?.unwrap_or(yarn.beta_slow);
    yarn.attention_factor = fields.f64("attention_factor", 0.0, ANY)?;
    yarn.mscale = fields.f64("mscale", -ANY, ANY)?;
    yarn.mscale_all_dim = fields.f64("mscale_all_dim", -ANY, ANY)?;
    yarn.truncate = fields.bool("truncate")?.unwrap_or(yarn.truncate);
    yarn.check().map_err(|(key, reason)| fields.error(key, reason))?;
    Ok(yarn)
}
