//! A stored matrix whose blocks are quantised when they are read.
//!
//! Blocks do not depend on their neighbours, so any bytes of the result can be computed from the values of their
//! blocks: nothing is kept, and several threads can read at once.

use std::borrow::Cow;
use std::path::Path;

use crate::backend::{MatrixPart, ReadBytes};
use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// Values to quantise at a time: 256 KB.
const VALUES_AT_ONCE: usize = 1 << 16;

/// The rows of `part` in another encoding.
#[derive(Debug)]
pub(super) struct QuantizedRows<'a> {
    pub(super) name: String,
    pub(super) path: Cow<'a, Path>,
    pub(super) part: MatrixPart<'a>,
    pub(super) encoding: Encoding,
    /// The importance of each column.
    pub(super) importance: Option<&'a [f32]>,
}

impl ReadBytes for QuantizedRows<'_> {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let block = self.encoding.block();
        let row_bytes = self.encoding.row_bytes(self.part.cols).unwrap_or(0);
        let inside = offset.checked_add(out.len() as u64).is_some_and(|end| end <= (row_bytes * self.part.rows) as u64);
        if !inside || row_bytes == 0 {
            let reason = format!("{} bytes at {offset} of the tensor `{}`", out.len(), self.name);
            return if out.is_empty() { Ok(()) } else { Err(Error::argument("offset", reason)) };
        }
        let mut scratch = Scratch::default();
        let (mut at, mut out) = (offset as usize, out);
        while !out.is_empty() {
            let (row, within) = (at / row_bytes, at % row_bytes);
            let first = within / block.bytes;
            let skipped = within % block.bytes;
            // As many blocks of this row as are requested, up to the limit.
            let last = (within + out.len()).min(row_bytes).div_ceil(block.bytes);
            let most = (VALUES_AT_ONCE / block.values).max(1);
            let blocks = first..last.min(first.saturating_add(most));
            self.quantize(row, blocks.start * block.values..blocks.end * block.values, &mut scratch)?;
            let made = scratch.quantized.get(skipped..).unwrap_or_default();
            let (now, rest) = out.split_at_mut(made.len().min(out.len()));
            now.copy_from_slice(made.get(..now.len()).unwrap_or_default());
            at += now.len();
            out = rest;
        }
        Ok(())
    }
}

/// Buffers that a read reuses from one piece to the next.
#[derive(Default)]
struct Scratch {
    stored: Vec<u8>,
    values: Vec<f32>,
    quantized: Vec<u8>,
}

impl QuantizedRows<'_> {
    /// Quantise the columns `cols`, whole blocks, of row `row`.
    fn quantize(&self, row: usize, cols: std::ops::Range<usize>, scratch: &mut Scratch) -> Result<()> {
        let Scratch { stored, values, quantized } = scratch;
        let cut = self.part.cut(row..row + 1, cols.clone())?;
        values.clear();
        values.resize(cols.len(), 0.0);
        cut.encoding.decode_row(cut.read(0..1, stored)?, values);
        quantized.clear();
        let importance = self.importance.and_then(|all| all.get(cols.clone()));
        self.encoding.quantize_row(values, importance, quantized).map_err(|error| match error {
            // With whole blocks and checked importances, only a value can be wrong.
            Error::InvalidArgument { reason, .. } => Error::InvalidTensor {
                name: self.name.clone(),
                path: self.path.to_path_buf(),
                expected: format!("values that {} holds", self.encoding),
                found: format!("{reason} of row {row} from column {} on", cols.start),
            },
            error => error,
        })
    }
}
