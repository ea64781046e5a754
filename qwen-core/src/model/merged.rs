//! A model with a low-rank adapter merged into its weights: `W + scale * B A`, row by row as they are packed.
//!
//! A merged model is as fast as a plain one and is one model: it has no adapter to choose or to leave out. Its weights
//! are rounded to the encoding of the model's, so its logits differ a little from those with the adapter beside it.

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};

use super::source::{LowRankSource, WeightSource};
use crate::backend::{MatrixPart, ReadBytes};
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// Weights with an adapter merged into them.
#[derive(Debug)]
pub struct MergedWeights<'a, S: ?Sized> {
    base: &'a S,
    adapter: &'a dyn LowRankSource,
}

impl<'a, S: WeightSource + fmt::Debug + ?Sized> MergedWeights<'a, S> {
    /// The weights of `base` with `adapter`. A matrix that cannot take its part, since it is quantised, is refused when it
    /// is asked for.
    pub fn new(base: &'a S, adapter: &'a dyn LowRankSource) -> Self {
        MergedWeights { base, adapter }
    }
}

/// Refuse to merge into the matrix `name` of this encoding.
fn check(encoding: Encoding, name: &str) -> Result<()> {
    match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => Ok(()),
        _ => {
            let reason = "the sum would be quantised again: merge into the model in 16 bits, or load the adapter beside \
                          this one (Engine::load_adapter)";
            Err(Error::unsupported(format!("merging an adapter into `{name}`, which is in {encoding},"), reason))
        }
    }
}

impl<S: WeightSource + fmt::Debug + ?Sized> WeightSource for MergedWeights<'_, S> {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixPart<'_>> {
        let base = self.base.matrix(name, rows, cols)?;
        let Some(module) = self.adapter.module(name.strip_suffix(".weight").unwrap_or(name))? else { return Ok(base) };
        check(base.encoding, name)?;
        let (a, b) = (module.a.to_f32(), module.b.to_f32());
        let needed = [module.rank.checked_mul(cols), module.rank.checked_mul(rows)];
        if needed != [Some(a.len()), Some(b.len())] {
            let reason = format!("`{name}`: {} and {} values at rank {}", a.len(), b.len(), module.rank);
            return Err(Error::argument("adapter", reason));
        }
        let encoding = base.encoding;
        MatrixPart::stored(encoding, rows, cols, MergedRows { base, a, b, rank: module.rank, scale: module.scale })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.base.vector(name, len)
    }

    fn encoding(&self, name: &str) -> Result<Encoding> {
        self.base.encoding(name)
    }

    fn column_order(&self, name: &str) -> Result<Option<Arc<[u32]>>> {
        self.base.column_order(name)
    }
}

/// The rows of a matrix with its part of the adapter added.
#[derive(Debug)]
struct MergedRows<'a> {
    base: MatrixPart<'a>,
    /// `[rank, cols]`
    a: Vec<f32>,
    /// `[rows, rank]`
    b: Vec<f32>,
    rank: usize,
    scale: f64,
}

impl MergedRows<'_> {
    /// The bytes of row `row`.
    fn merged(&self, row: usize, values: &mut [f32], bytes: &mut Vec<u8>) -> Result<()> {
        let mut stored = Vec::new();
        self.base.encoding.decode_row(self.base.read(row..row + 1, &mut stored)?, values);
        let factors = self.b.get(row * self.rank..(row + 1) * self.rank).unwrap_or_default();
        for (factor, a) in factors.iter().zip(self.a.chunks_exact(values.len().max(1))) {
            let factor = (f64::from(*factor) * self.scale) as f32;
            values.iter_mut().zip(a).for_each(|(value, a)| *value += factor * a);
        }
        bytes.clear();
        match self.base.encoding {
            Encoding::Bf16 => bytes.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
            Encoding::F16 => bytes.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
            _ => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
        Ok(())
    }
}

impl ReadBytes for MergedRows<'_> {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.base.cols * self.base.encoding.block().bytes;
        let end = offset.saturating_add(out.len() as u64);
        if row_bytes == 0 || end > (row_bytes as u64).saturating_mul(self.base.rows as u64) {
            return Err(Error::argument("offset", format!("{} bytes at {offset} of a merged matrix", out.len())));
        }
        let (mut values, mut bytes) = (vec![0.0; self.base.cols], Vec::with_capacity(row_bytes));
        let (mut row, mut skip) = ((offset / row_bytes as u64) as usize, (offset % row_bytes as u64) as usize);
        let mut rest = out;
        while !rest.is_empty() {
            self.merged(row, &mut values, &mut bytes)?;
            let from = bytes.get(skip..).unwrap_or_default();
            let (now, later) = rest.split_at_mut(from.len().min(rest.len()));
            now.copy_from_slice(&from[..now.len()]);
            (rest, row, skip) = (later, row + 1, 0);
        }
        Ok(())
    }
}
