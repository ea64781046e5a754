//! `embed`: rows of the embedding table.

use qwen_core::Result;
use qwen_core::backend::Embed;

use super::CudaBackend;
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::params;

impl CudaBackend {
    pub(super) fn queue_embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows, .. } = op;
        let layout = &table.0.layout;
        let mut args = Args::new(&self.gpu, "embed");
        let params = params::Embed {
            ids: args.take("ids", &ids.0.array, &[4, rows])?,
            table: args.take("table", &table.0.array, &[layout.bytes])?,
            out: args.take("out", &out.0.array, &[4, rows, layout.cols])?,
            rows: args.size(rows)?,
            cols: args.size(layout.cols)?,
            stride: args.size(layout.stride)?,
            vocab: args.size(layout.rows)?,
            encoding: layout.element.code(),
            unused: 0,
        };
        let command = args.launch(Kernel::Embed, [rows, 1, 1], &params)?;
        self.queue(command)
    }
}
