//! `rms_norm` and `add_rms_norm`.

use std::ops::Range;

use super::{Form, Inputs, RAGGED_ROWS};
use crate::op::{Allowed, Cost, Guarded, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use crate::tolerance;
use qwen_core::backend::Backend;
use qwen_core::composed;
use qwen_core::dtype::Precision;
use qwen_core::error::Result;

const SEED: u64 = 2;

/// `rms_norm`, or `add_rms_norm` in one of its forms.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// Values of a row.
    pub hidden_size: usize,
    /// The tokens, as rows of an endless list of them.
    pub rows: Range<usize>,
    /// The activations.
    pub inputs: Inputs,
    /// Added to the mean square.
    pub eps: f32,
    /// Run `add_rms_norm` in this form.
    pub add: Option<Form>,
}

impl RmsNorm {
    /// `rms_norm` over normal values with the epsilon of most models.
    pub fn new(hidden_size: usize, rows: Range<usize>) -> Self {
        RmsNorm { hidden_size, rows, inputs: Inputs::Normal, eps: 1e-6, add: None }
    }
}

/// The buffers of an [`RmsNorm`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    y: Guarded<B>,
    weight: Guarded<B>,
    out: Guarded<B>,
}

impl Op for RmsNorm {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let len = (self.rows.len() * self.hidden_size) as u64;
        let (bytes, flops) = if self.add.is_some() { (16, 5) } else { (8, 4) };
        Cost { bytes: bytes * len + 4 * self.hidden_size as u64, flops: flops * len }
    }

    fn allowed(&self, _precision: Precision, output: &str) -> Allowed {
        match output {
            "residual" => Allowed::rms(tolerance::U),
            _ => Allowed::rms(tolerance::sum(self.hidden_size) + tolerance::ELEMENTWISE),
        }
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        Ok(OnDevice {
            x: Guarded::new(b, &self.inputs.rows(SEED, self.rows.clone(), self.hidden_size))?,
            y: Guarded::new(b, &self.inputs.rows(SEED + 1, self.rows.clone(), self.hidden_size))?,
            weight: Guarded::new(b, &weight(self.hidden_size))?,
            out: Guarded::output(b, self.rows.len() * self.hidden_size)?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let (rows, hidden_size, eps) = (self.rows.len(), self.hidden_size, self.eps);
        let OnDevice { x, y, weight, out } = on;
        let (x, y, weight, out) = (&mut x.buffer, &y.buffer, &weight.buffer, &mut out.buffer);
        match self.add {
            None => b.rms_norm(x, weight, eps, out, hidden_size, rows),
            Some(Form::Own) => b.add_rms_norm(x, y, weight, eps, out, hidden_size, rows),
            Some(Form::Composed) => composed::add_rms_norm(b, x, y, weight, eps, out, hidden_size, rows),
        }
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        let mut outputs = vec![Output::rows("out", &on.out, self.rows.len(), self.hidden_size)];
        if self.add.is_some() {
            outputs.push(Output::rows("residual", &on.x, self.rows.len(), self.hidden_size));
        }
        outputs
    }
}

/// The weight of a norm.
pub(super) fn weight(hidden_size: usize) -> Vec<f32> {
    Rng::of(&[SEED]).normals(hidden_size, 0.3).iter().map(|w| 1.0 + w).collect()
}

fn shapes<B: Backend>(rig: &mut Rig<'_, B>, add: Option<Form>) -> Result<()> {
    for rows in RAGGED_ROWS {
        rig.check(&RmsNorm { add, ..RmsNorm::new(67, 0..rows) })?;
    }
    for hidden_size in [1, 2, 3, 7, 15, 16, 17, 63, 100, 255, 257, 896, 1536, 3584, 5120, 8192] {
        rig.check(&RmsNorm { add, ..RmsNorm::new(hidden_size, 0..3) })?;
    }
    for inputs in [Inputs::Outliers, Inputs::Tiny, Inputs::Zero] {
        for eps in [1e-6, 1e-5] {
            rig.check(&RmsNorm { inputs, eps, add, ..RmsNorm::new(257, 0..5) })?;
        }
    }
    Ok(())
}

/// `rms_norm` over ragged shapes, outliers, and values so small that the epsilon counts.
pub fn plain<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    shapes(rig, None)
}

/// `add_rms_norm` likewise, in its own and in its composed form.
pub fn add<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    shapes(rig, Some(Form::Own))?;
    shapes(rig, Some(Form::Composed))
}

/// A row has the same bits alone and among others.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    for add in [None, Some(Form::Own)] {
        let of = |rows: Range<usize>| RmsNorm { add, ..RmsNorm::new(300, rows) };
        let whole = rig.run(&of(0..33))?;
        for part in [0..1, 7..8, 32..33, 3..6, 1..17, 16..33] {
            rig.check_same_rows((&of(part.clone()), 0..part.len()), (&whole, part))?;
        }
    }
    Ok(())
}
