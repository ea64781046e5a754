//! `embed`.

use super::linear::Matrix;
use crate::op::{Allowed, Cost, Guarded, GuardedIndices, Op, Output};
use crate::random::Rng;
use crate::rig::Rig;
use qwen_core::backend::{self, Backend, WeightRole};
use qwen_core::error::Result;
use qwen_core::{Encoding, Precision};

/// `embed`: rows of a table.
#[derive(Debug, Clone)]
pub struct Embed {
    /// The table.
    pub table: Matrix,
    /// The ids to look up.
    pub ids: Vec<u32>,
}

/// The buffers of an [`Embed`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    ids: GuardedIndices<B>,
    table: B::Weight,
    out: Guarded<B>,
}

impl Op for Embed {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let row = Encoding::bytes(self.table.parts[0].0, self.table.cols) + 4 * self.table.cols + 4;
        Cost { bytes: (self.ids.len() * row) as u64, flops: 0 }
    }

    fn allowed(&self, precision: Precision, _output: &str) -> Allowed {
        match (precision, self.table.worst_encoding()) {
            (Precision::Exact, _) | (_, Encoding::Bf16) => Allowed::Bits,
            // The table of a tied model is also the matrix of a product, and may be held in 16 bits for that.
            (Precision::Fast, _) => Allowed::rms(1.0 / 256.0),
        }
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        Ok(OnDevice {
            ids: GuardedIndices::new(b, &self.ids)?,
            table: self.table.load(b)?,
            out: Guarded::output(b, self.ids.len() * self.table.cols)?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        b.embed(backend::Embed { ids: &on.ids.buffer, table: &on.table, out: &mut on.out.buffer, rows: self.ids.len() })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.ids.len(), self.table.cols)]
    }
}

/// Ragged row counts and odd widths, including the first and the last row of the table.
pub fn rows<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        for (vocab, cols, len) in
            [(50, 64, 0), (50, 64, 1), (51, 33, 2), (16, 1, 5), (257, 7, 8), (100, 896, 13), (37, 129, 33)]
        {
            let mut rng = Rng::of(&[vocab as u64, cols as u64]);
            let mut ids: Vec<u32> = (0..len).map(|_| rng.below(vocab) as u32).collect();
            if let [first, .., last] = &mut ids[..] {
                (*first, *last) = (vocab as u32 - 1, 0);
            }
            let table = Matrix { role: WeightRole::Embedding, ..Matrix::new(encoding, vocab, cols) };
            rig.check(&Embed { table: table.clone(), ids: ids.clone() })?;
            rig.check(&Embed { table: Matrix { cut: true, ..table }, ids })?;
        }
    }
    Ok(())
}

/// Ids outside of the table give zeros.
pub fn ids_outside_of_the_table<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        let table = Matrix { role: WeightRole::Embedding, ..Matrix::new(encoding, 50, 33) };
        rig.check(&Embed { table, ids: vec![50, 0, 51, 49, 64, 4_000_000_000, u32::MAX, 7] })?;
    }
    Ok(())
}
