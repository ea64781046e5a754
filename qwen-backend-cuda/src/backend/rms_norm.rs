//! `rms_norm`: rows over their root mean square.

use qwen_core::Result;
use qwen_core::backend::RmsNorm;

use super::CudaBackend;
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::params;

impl CudaBackend {
    pub(super) fn queue_rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        let RmsNorm { x, weight, eps, hidden_size, out, rows, .. } = op;
        let mut args = Args::new(&self.gpu, "rms_norm");
        let params = params::RmsNorm {
            x: args.take("x", &x.0.array, &[4, rows, hidden_size])?,
            weight: args.take("weight", &weight.0.array, &[4, hidden_size])?,
            out: args.take("out", &out.0.array, &[4, rows, hidden_size])?,
            hidden_size: args.size(hidden_size)?,
            rows: args.size(rows)?,
            eps,
            unused: 0,
        };
        let command = args.launch(Kernel::RmsNorm, [rows, 1, 1], &params)?;
        self.queue(command)
    }
}
