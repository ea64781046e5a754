//! `embed`: rows of the embedding table.

use qwen_core::Result;
use qwen_core::backend::Embed;

use super::CudaBackend;
use crate::kernel::{BlockKernel, Kernel};
use crate::launch::Args;
use crate::params;
use crate::weight::Format;

impl CudaBackend {
    pub(super) fn queue_embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows, .. } = op;
        let layout = &table.0.layout;
        let Some((segment, stored)) = table.0.segments().next() else {
            return Err(self.mismatch("embed", "an empty table"));
        };
        let mut args = Args::new(&self.gpu, "embed");
        let mut params = params::Embed {
            ids: args.take("ids", &ids.0.array, &[4, rows])?,
            table: args.take("table", &stored.array, &[segment.bytes])?,
            out: args.take("out", &out.0.array, &[4, rows, layout.cols])?,
            rows: args.size(rows)?,
            cols: args.size(layout.cols)?,
            vocab: args.size(layout.rows)?,
            ..params::Embed::default()
        };
        let kernel = match segment.format {
            Format::Values(element) => {
                params.stride = args.size(segment.stride(element))?;
                params.encoding = element.code();
                Kernel::Embed
            }
            Format::Blocks(blocks) => {
                params.stride = args.size(segment.row_bytes)?;
                params.group_units = args.size(blocks.group_units())?;
                params.column_order = args.take_if("column_order", stored.column_order.as_ref(), &[4, layout.cols])?;
                Kernel::Blocks(blocks.name, BlockKernel::Embed)
            }
        };
        let command = args.launch(kernel, [rows, 1, 1], &params)?;
        self.queue(command)
    }
}
