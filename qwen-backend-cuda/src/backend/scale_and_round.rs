//! Activations rounded before a product: to 16 bits for tensor cores, or to signed bytes for matrices in blocks.

use qwen_core::Result;

use super::CudaBackend;
use super::operands::Words;
use crate::driver::Array;
use crate::kernel::{Element, Kernel};
use crate::launch::Args;
use crate::params::{RoundToBytes, ScaleAndRound};
use crate::workspace::byte_row;

impl CudaBackend {
    /// Queue the rounding of `x` to 16 bits of this type, for a matrix with [tokens, columns, stride] and its columns in
    /// this order. Returns the rounded rows and their factors.
    pub(super) fn scale_and_round(
        &mut self,
        op: &'static str,
        x: &Words,
        element: Element,
        [tokens, cols, stride]: [usize; 3],
        order: Option<&Array>,
    ) -> Result<(Array, Array)> {
        let (rounded, scales) = self.workspace.rounded(&mut self.gpu, tokens, cols)?;
        let mut args = Args::new(&self.gpu, op);
        let params = ScaleAndRound {
            x: args.take("x", &x.array, &[4, tokens, cols])?,
            rounded: args.take("rounded", &rounded, &[2, tokens, stride])?,
            scales: args.take("scales", &scales, &[4, tokens])?,
            column_order: args.take_if("column_order", order, &[4, cols])?,
            tokens: args.size(tokens)?,
            cols: args.size(cols)?,
            stride: args.size(stride)?,
            unused: 0,
        };
        let command = args.launch(Kernel::ScaleAndRound(element), [tokens, 1, 1], &params)?;
        self.queue(command)?;
        Ok((rounded, scales))
    }

    /// Queue the rounding of `x` to signed bytes, for a matrix in blocks with its columns in this order. Returns the
    /// rounded rows.
    pub(super) fn round_to_bytes(
        &mut self,
        op: &'static str,
        x: &Words,
        [tokens, cols]: [usize; 2],
        order: Option<&Array>,
    ) -> Result<Array> {
        let bytes = self.workspace.bytes(&mut self.gpu, tokens, cols)?;
        let mut args = Args::new(&self.gpu, op);
        let params = RoundToBytes {
            x: args.take("x", &x.array, &[4, tokens, cols])?,
            bytes: args.take("bytes", &bytes, &[tokens, byte_row(cols)])?,
            column_order: args.take_if("column_order", order, &[4, cols])?,
            tokens: args.size(tokens)?,
            cols: args.size(cols)?,
        };
        let command = args.launch(Kernel::RoundToBytes, [tokens, 1, 1], &params)?;
        self.queue(command)?;
        Ok(bytes)
    }
}
