//! `argmax`: the index of each row's largest value.

use qwen_core::Result;
use qwen_core::backend::Argmax;

use super::CudaBackend;
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::params;

impl CudaBackend {
    pub(super) fn queue_argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        let Argmax { x, out, width, valid, rows, .. } = op;
        let mut args = Args::new(&self.gpu, "argmax");
        let params = params::Argmax {
            x: args.take("x", &x.0.array, &[4, rows, width])?,
            out: args.take("out", &out.0.array, &[4, rows])?,
            rows: args.size(rows)?,
            width: args.size(width)?,
            valid: args.size(valid.min(width))?,
            unused: 0,
        };
        let command = args.launch(Kernel::Argmax, [rows, 1, 1], &params)?;
        self.queue(command)
    }
}
