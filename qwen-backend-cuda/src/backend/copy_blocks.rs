//! `copy_blocks`: whole blocks of the K/V store, in all layers.

use qwen_core::Result;

use super::CudaBackend;
use crate::kernel::Kernel;
use crate::kv::Store;
use crate::launch::Args;
use crate::params::CopyBlocks;

impl CudaBackend {
    pub(super) fn queue_copy_blocks(&mut self, store: &Store, pairs: &[(u32, u32)]) -> Result<()> {
        let op = "copy_blocks";
        let spec = &store.spec;
        if let Some(pair) = pairs.iter().find(|pair| pair.0.max(pair.1) as usize >= spec.num_blocks) {
            return Err(self.mismatch(op, format!("{pair:?} of {} blocks", spec.num_blocks)));
        }
        if pairs.is_empty() {
            return Ok(());
        }
        let flat: Vec<u32> = pairs.iter().flat_map(|pair| [pair.0, pair.1]).collect();
        let Some(list) = self.pairs.clone().filter(|list| list.bytes >= size_of_val(flat.as_slice())) else {
            return Err(self.mismatch(op, format!("{} pairs of {} blocks", pairs.len(), spec.num_blocks)));
        };
        self.flush()?;
        self.gpu.write_u32(op, &list, &flat)?;
        for layer in &store.layers {
            let sides = [(&layer.keys, layer.key_type), (&layer.values, layer.value_type)];
            let planes = sides.iter().flat_map(|(array, of)| store.planes(*of).map(move |plane| (array, *of, plane)));
            for (array, of, (first, block_bytes)) in planes {
                let mut args = Args::new(&self.gpu, op);
                let params = CopyBlocks {
                    array: args.take("K/V", array, &store.array_bytes(of))?,
                    pairs: args.take("pairs", &list, &[4, flat.len()])?,
                    first: first as u64,
                    num_pairs: args.size(pairs.len())?,
                    num_blocks: args.size(spec.num_blocks)?,
                    block_bytes: args.size(block_bytes)?,
                    unused: 0,
                };
                let command = args.launch(Kernel::CopyBlocks, [pairs.len(), spec.num_key_value_heads, 1], &params)?;
                self.queue(command)?;
            }
        }
        Ok(())
    }
}
