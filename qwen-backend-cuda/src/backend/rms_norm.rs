//! `rms_norm`: rows over their root mean square.

use qwen_core::Result;
use qwen_core::backend::{Norm, RmsNorm};

use super::{CudaBackend, CudaBuffer};
use crate::driver::Array;
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::params;
use crate::workspace::byte_row;

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
            ..params::RmsNorm::default()
        };
        let command = args.launch(Kernel::RmsNorm, [rows, 1, 1], &params)?;
        self.queue(command)
    }

    /// Queue the norm of `x`, rounded to signed bytes. Returns the rounded rows.
    pub(super) fn norm_to_bytes(
        &mut self,
        op: &'static str,
        norm: &Norm<'_, Self>,
        x: &CudaBuffer,
        rows: usize,
    ) -> Result<Array> {
        let Norm { weight, eps, hidden_size, .. } = *norm;
        let bytes = self.workspace.bytes(&mut self.gpu, rows, hidden_size)?;
        let mut args = Args::new(&self.gpu, op);
        let params = params::RmsNorm {
            x: args.take("x", &x.0.array, &[4, rows, hidden_size])?,
            weight: args.take("weight", &weight.0.array, &[4, hidden_size])?,
            bytes: args.take("bytes", &bytes, &[rows, byte_row(hidden_size)])?,
            hidden_size: args.size(hidden_size)?,
            rows: args.size(rows)?,
            eps,
            ..params::RmsNorm::default()
        };
        let command = args.launch(Kernel::RmsNormToBytes, [rows, 1, 1], &params)?;
        self.queue(command)?;
        Ok(bytes)
    }
}
