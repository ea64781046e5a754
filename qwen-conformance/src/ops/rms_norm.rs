//! `rms_norm`.

use std::ops::Range;

use super::{Inputs, RAGGED_ROWS};
use crate::op::{Allowed, Cost, Guarded, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use crate::tolerance;
use qwen_core::Precision;
use qwen_core::backend::{self, Backend};
use qwen_core::error::Result;

const SEED: u64 = 2;

/// `rms_norm`.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// Values of a row.
    pub hidden_size: usize,
    /// The tokens, as rows of an endless list.
    pub rows: Range<usize>,
    /// The activations.
    pub inputs: Inputs,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    /// `rms_norm` over normal values with the epsilon of most models.
    pub fn new(hidden_size: usize, rows: Range<usize>) -> Self {
        RmsNorm { hidden_size, rows, inputs: Inputs::Normal, eps: 1e-6 }
    }
}

/// The buffers of an [`RmsNorm`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    weight: Guarded<B>,
    out: Guarded<B>,
}

impl Op for RmsNorm {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let len = (self.rows.len() * self.hidden_size) as u64;
        Cost { bytes: 8 * len + 4 * self.hidden_size as u64, flops: 4 * len }
    }

    fn allowed(&self, _precision: Precision, _output: &str) -> Allowed {
        Allowed::rms(tolerance::sum(self.hidden_size) + tolerance::ELEMENTWISE)
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        Ok(OnDevice {
            x: Guarded::new(b, &self.inputs.rows(SEED, self.rows.clone(), self.hidden_size))?,
            weight: Guarded::new(b, &weight(self.hidden_size))?,
            out: Guarded::output(b, self.rows.len() * self.hidden_size)?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let (rows, hidden_size, eps) = (self.rows.len(), self.hidden_size, self.eps);
        let OnDevice { x, weight, out } = on;
        let (x, weight, out) = (&x.buffer, &weight.buffer, &mut out.buffer);
        b.rms_norm(backend::RmsNorm { x, weight, eps, hidden_size, out, rows })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.rows.len(), self.hidden_size)]
    }
}

/// The weight of a norm.
pub(super) fn weight(hidden_size: usize) -> Vec<f32> {
    Rng::of(&[SEED]).normals(hidden_size, 0.3).iter().map(|w| 1.0 + w).collect()
}

/// Ragged shapes, outliers, and values so small that the epsilon matters.
pub fn shapes<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for rows in RAGGED_ROWS {
        rig.check(&RmsNorm::new(67, 0..rows))?;
    }
    for hidden_size in [1, 2, 3, 7, 15, 16, 17, 63, 100, 255, 257, 896, 1536, 3584, 5120, 8192] {
        rig.check(&RmsNorm::new(hidden_size, 0..3))?;
    }
    for inputs in [Inputs::Outliers, Inputs::Tiny, Inputs::Zero] {
        for eps in [1e-6, 1e-5] {
            rig.check(&RmsNorm { inputs, eps, ..RmsNorm::new(257, 0..5) })?;
        }
    }
    Ok(())
}

/// A row has the same bits alone and among others.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    let whole = rig.run(&RmsNorm::new(300, 0..33))?;
    for part in [0..1, 7..8, 32..33, 3..6, 1..17, 16..33] {
        rig.check_same_rows((&RmsNorm::new(300, part.clone()), 0..part.len()), (&whole, part))?;
    }
    Ok(())
}
