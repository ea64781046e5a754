//! `gather_rows`.

use super::Inputs;
use crate::op::{Allowed, Cost, Guarded, GuardedIndices, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use qwen_core::backend::{self, Backend};
use qwen_core::dtype::Precision;
use qwen_core::error::Result;

/// `gather_rows`: some rows of a buffer, in any order and more than once.
#[derive(Debug, Clone)]
pub struct GatherRows {
    /// Rows of the buffer.
    pub from: usize,
    /// Rows to take.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
}

/// The buffers of a [`GatherRows`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    indices: GuardedIndices<B>,
    out: Guarded<B>,
}

impl Op for GatherRows {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        Cost { bytes: (self.rows * (8 * self.width + 4)) as u64, flops: 0 }
    }

    fn allowed(&self, _precision: Precision, _output: &str) -> Allowed {
        Allowed::Bits
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        let mut rng = Rng::of(&[self.from as u64, self.rows as u64]);
        let mut indices: Vec<u32> = (0..self.rows).map(|_| rng.below(self.from) as u32).collect();
        if let Some(last) = indices.last_mut() {
            *last = self.from as u32 - 1;
        }
        Ok(OnDevice {
            x: Guarded::new(b, &Inputs::Normal.rows(5, 0..self.from, self.width))?,
            indices: GuardedIndices::new(b, &indices)?,
            out: Guarded::output(b, self.rows * self.width)?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        b.gather_rows(backend::GatherRows {
            x: &on.x.buffer,
            indices: &on.indices.buffer,
            out: &mut on.out.buffer,
            width: self.width,
            rows: self.rows,
        })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.rows, self.width)]
    }
}

/// Ragged row counts and odd widths.
pub fn rows<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for (from, rows, width) in
        [(5, 0, 64), (1, 1, 1), (5, 1, 33), (5, 5, 7), (40, 17, 896), (3, 33, 129), (64, 13, 64), (200, 2, 1023)]
    {
        rig.check(&GatherRows { from, rows, width })?;
    }
    Ok(())
}
