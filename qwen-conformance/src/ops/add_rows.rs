//! `add_rows`.

use super::{Form, Inputs};
use crate::op::{Allowed, Cost, Guarded, GuardedIndices, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use crate::tolerance;
use qwen_core::Precision;
use qwen_core::backend::{self, Backend, composed};
use qwen_core::error::Result;

/// `add_rows`: rows that are added to some rows of a buffer, in any order.
#[derive(Debug, Clone)]
pub struct AddRows {
    /// Rows of the buffer.
    pub to: usize,
    /// Rows to add.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
    /// What they are multiplied with.
    pub scale: f32,
    /// Own or composed.
    pub form: Form,
}

/// The buffers of an [`AddRows`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    indices: GuardedIndices<B>,
    out: Guarded<B>,
}

impl Op for AddRows {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let values = (self.rows * self.width) as u64;
        Cost { bytes: 12 * values + 4 * self.rows as u64, flops: 2 * values }
    }

    fn allowed(&self, _precision: Precision, _output: &str) -> Allowed {
        // A power of two rounds nothing, so there is one right sum.
        match self.scale.to_bits().trailing_zeros() >= 23 {
            true => Allowed::Bits,
            false => Allowed::rms(tolerance::ELEMENTWISE),
        }
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        let mut rng = Rng::of(&[self.to as u64, self.rows as u64, 77]);
        let mut indices: Vec<u32> = rng.permutation(self.to).into_iter().take(self.rows).collect();
        // One that the buffer does not have.
        if let Some(last) = indices.last_mut().filter(|_| self.rows > 2) {
            *last = self.to as u32;
        }
        Ok(OnDevice {
            x: Guarded::new(b, &Inputs::Normal.rows(8, 0..self.rows, self.width))?,
            indices: GuardedIndices::new(b, &indices)?,
            out: Guarded::new(b, &Inputs::Outliers.rows(9, 0..self.to, self.width))?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let op = backend::AddRows {
            x: &on.x.buffer,
            indices: &on.indices.buffer,
            scale: self.scale,
            out: &mut on.out.buffer,
            out_rows: self.to,
            width: self.width,
            rows: self.rows,
        };
        match self.form {
            Form::Own => b.add_rows(op),
            Form::Composed => composed::add_rows(b, op),
        }
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.to, self.width)]
    }
}

/// Ragged row counts and odd widths, some rows, all and none, in its own and in its composed form.
pub fn rows<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for (to, rows, width, scale) in [
        (5, 0, 64, 1.0),
        (1, 1, 1, 2.0),
        (5, 1, 33, -0.5),
        (5, 5, 7, 0.3),
        (40, 17, 896, 4.0),
        (40, 40, 129, 1.7),
        (64, 13, 64, 0.0),
        (130, 128, 1023, 1.0),
    ] {
        for form in [Form::Own, Form::Composed] {
            rig.check(&AddRows { to, rows, width, scale, form })?;
        }
    }
    Ok(())
}
