//! Activations scaled and rounded to 16 bits, the input of tensor cores.

use qwen_core::Result;

use super::CudaBackend;
use super::operands::Words;
use crate::driver::Array;
use crate::kernel::{Element, Kernel};
use crate::launch::Args;
use crate::params::ScaleAndRound;

impl CudaBackend {
    /// Queue the rounding of `x` for a product with a matrix in this type, with [tokens, columns, stride]. Returns the
    /// rounded rows and their factors.
    pub(super) fn scale_and_round(
        &mut self,
        op: &'static str,
        x: &Words,
        element: Element,
        [tokens, cols, stride]: [usize; 3],
    ) -> Result<(Array, Array)> {
        let (rounded, scales) = self.workspace.rounded(&mut self.gpu, tokens, cols)?;
        let mut args = Args::new(&self.gpu, op);
        let params = ScaleAndRound {
            x: args.take("x", &x.array, &[4, tokens, cols])?,
            rounded: args.take("rounded", &rounded, &[2, tokens, stride])?,
            scales: args.take("scales", &scales, &[4, tokens])?,
            tokens: args.size(tokens)?,
            cols: args.size(cols)?,
            stride: args.size(stride)?,
            unused: 0,
        };
        let command = args.launch(Kernel::ScaleAndRound(element), [tokens, 1, 1], &params)?;
        self.queue(command)?;
        Ok((rounded, scales))
    }
}
