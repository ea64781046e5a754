//! Operations on rows of activations: `silu_and_mul`, `add`, `add_rows` and `gather_rows`.

use qwen_core::Result;
use qwen_core::backend::{Add, AddRows, GatherRows, SiluAndMul};

use super::CudaBackend;
use crate::geometry::ELEMENT_THREADS;
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::params::{self, Rows};

impl CudaBackend {
    pub(super) fn queue_silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        let SiluAndMul { gate_up, out, intermediate_size: width, rows, .. } = op;
        let mut args = Args::new(&self.gpu, "silu_and_mul");
        let params = Rows {
            x: args.take("gate_up", &gate_up.0.array, &[4, rows, 2, width])?,
            out: args.take("out", &out.0.array, &[4, rows, width])?,
            rows: args.size(rows)?,
            width: args.size(width)?,
            ..Rows::default()
        };
        let command = args.launch(Kernel::SiluAndMul, [width.div_ceil(ELEMENT_THREADS), rows, 1], &params)?;
        self.queue(command)
    }

    pub(super) fn queue_add(&mut self, op: Add<'_, Self>) -> Result<()> {
        let Add { x, y, len, .. } = op;
        let mut args = Args::new(&self.gpu, "add");
        let params = Rows {
            x: args.take("y", &y.0.array, &[4, len])?,
            out: args.take("x", &x.0.array, &[4, len])?,
            rows: args.size(len)?,
            width: 1,
            ..Rows::default()
        };
        let command = args.launch(Kernel::Add, [len.div_ceil(ELEMENT_THREADS), 1, 1], &params)?;
        self.queue(command)
    }

    pub(super) fn queue_add_rows(&mut self, op: AddRows<'_, Self>) -> Result<()> {
        let AddRows { x, indices, scale, out, out_rows, width, rows, .. } = op;
        let mut args = Args::new(&self.gpu, "add_rows");
        let params = params::AddRows {
            x: args.take("x", &x.0.array, &[4, rows, width])?,
            indices: args.take("indices", &indices.0.array, &[4, rows])?,
            out: args.take("out", &out.0.array, &[4, out_rows, width])?,
            rows: args.size(rows)?,
            width: args.size(width)?,
            out_rows: args.size(out_rows)?,
            scale,
        };
        let command = args.launch(Kernel::AddRows, [rows, 1, 1], &params)?;
        self.queue(command)
    }

    pub(super) fn queue_gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { x, indices, out, width, rows, .. } = op;
        let x_rows = x.0.len.checked_div(width).unwrap_or(0);
        let mut args = Args::new(&self.gpu, "gather_rows");
        let params = Rows {
            x: args.take("x", &x.0.array, &[4, x_rows, width])?,
            indices: args.take("indices", &indices.0.array, &[4, rows])?,
            out: args.take("out", &out.0.array, &[4, rows, width])?,
            rows: args.size(rows)?,
            width: args.size(width)?,
            x_rows: args.size(x_rows)?,
            unused: 0,
        };
        let command = args.launch(Kernel::GatherRows, [rows, 1, 1], &params)?;
        self.queue(command)
    }
}
