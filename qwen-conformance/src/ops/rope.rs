//! `rope`.

use std::ops::Range;

use super::{Inputs, RAGGED_ROWS};
use crate::op::{Allowed, Cost, Data, Guarded, Op, Output};
use crate::rig::Rig;
use crate::scenario::cos_sin;
use crate::tolerance;
use qwen_core::Precision;
use qwen_core::backend::{self, Backend, HeadLayout};
use qwen_core::error::Result;

const SEED: u64 = 3;

/// The heads of the published sizes, 0.5B to 72B.
pub const GEOMETRIES: [(&str, HeadLayout); 7] = [
    ("0.5B", heads(14, 2, 64)),
    ("1.5B", heads(12, 2, 128)),
    ("3B", heads(16, 2, 128)),
    ("7B", heads(28, 4, 128)),
    ("14B and 32B", heads(40, 8, 128)),
    ("72B", heads(64, 8, 128)),
    ("7B on two ranks", heads(14, 2, 128)),
];

/// Heads side by side.
pub const fn heads(num_attention_heads: usize, num_key_value_heads: usize, head_dim: usize) -> HeadLayout {
    HeadLayout { num_attention_heads, num_key_value_heads, head_dim }
}

/// `rope`: query and key heads rotated in place.
#[derive(Debug, Clone)]
pub struct Rope {
    /// The heads of a row.
    pub heads: HeadLayout,
    /// The tokens, as rows of an endless list.
    pub rows: Range<usize>,
    /// The activations.
    pub inputs: Inputs,
}

/// The buffers of a [`Rope`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    qkv: Guarded<B>,
    cos_sin: Guarded<B>,
}

impl Op for Rope {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let rotated = (self.rows.len() * (self.heads.q_size() + self.heads.kv_size())) as u64;
        Cost { bytes: 8 * rotated + (4 * self.rows.len() * self.heads.head_dim) as u64, flops: 3 * rotated }
    }

    fn allowed(&self, _precision: Precision, output: &str) -> Allowed {
        if output == "values" { Allowed::Bits } else { Allowed::rms(tolerance::ELEMENTWISE) }
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        // Positions far apart, including 131,071.
        let cos_sin: Vec<f32> =
            self.rows.clone().flat_map(|row| cos_sin(131_071 * (row + 1) % 131_072, self.heads.head_dim)).collect();
        Ok(OnDevice {
            qkv: Guarded::new(b, &self.inputs.rows(SEED, self.rows.clone(), self.heads.qkv_size()))?,
            cos_sin: Guarded::new(b, &cos_sin)?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        b.rope(backend::Rope {
            qkv: &mut on.qkv.buffer,
            cos_sin: &on.cos_sin.buffer,
            heads: self.heads,
            rows: self.rows.len(),
        })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        let rotated = self.heads.q_size() + self.heads.kv_size();
        [("queries and keys", 0..rotated), ("values", rotated..self.heads.qkv_size())]
            .map(|(name, cols)| Output {
                name,
                data: Data::Values(&on.qkv),
                rows: self.rows.len(),
                width: self.heads.qkv_size(),
                cols,
            })
            .into()
    }
}

/// The heads of every published size.
pub fn every_geometry<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for (_, heads) in GEOMETRIES {
        for rows in [1, 5] {
            rig.check(&Rope { heads, rows: 0..rows, inputs: Inputs::Normal })?;
        }
    }
    for rows in RAGGED_ROWS {
        rig.check(&Rope { heads: heads(5, 1, 64), rows: 0..rows, inputs: Inputs::Normal })?;
    }
    rig.check(&Rope { heads: heads(7, 1, 128), rows: 0..3, inputs: Inputs::Outliers })
}

/// A row has the same bits alone and among others.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    let of = |rows: Range<usize>| Rope { heads: heads(14, 2, 64), rows, inputs: Inputs::Normal };
    let whole = rig.run(&of(0..17))?;
    for part in [0..1, 7..8, 16..17, 3..6, 1..17] {
        rig.check_same_rows((&of(part.clone()), 0..part.len()), (&whole, part))?;
    }
    Ok(())
}
