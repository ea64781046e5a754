//! Activations scaled and rounded to 16 bits, the input of tensor cores.

use qwen_core::Result;

use super::CudaBackend;
use super::operands::Words;
use crate::driver::Array;
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::params::ScaleAndRound;
use crate::weight::Layout;

impl CudaBackend {
    /// Queue the rounding of `x` for a product with a matrix of this layout. Returns the rounded rows and their factors.
    pub(super) fn scale_and_round(
        &mut self,
        op: &'static str,
        x: &Words,
        layout: &Layout,
        tokens: usize,
    ) -> Result<(Array, Array)> {
        let (rounded, scales) = self.workspace.rounded(&mut self.gpu, tokens, layout.cols)?;
        let mut args = Args::new(&self.gpu, op);
        let params = ScaleAndRound {
            x: args.take("x", &x.array, &[4, tokens, layout.cols])?,
            rounded: args.take("rounded", &rounded, &[2, tokens, layout.stride])?,
            scales: args.take("scales", &scales, &[4, tokens])?,
            tokens: args.size(tokens)?,
            cols: args.size(layout.cols)?,
            stride: args.size(layout.stride)?,
            unused: 0,
        };
        let command = args.launch(Kernel::ScaleAndRound(layout.element), [tokens, 1, 1], &params)?;
        self.queue(command)?;
        Ok((rounded, scales))
    }
}
