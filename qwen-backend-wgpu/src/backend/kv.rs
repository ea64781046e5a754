//! Keys and values: storing those of a step, and copying blocks.

use qwen_core::backend::HeadLayout;
use qwen_core::{Backend, Result};

use super::{Numbers, WgpuBackend, words};
use crate::kv::Store;
use crate::shader::Shader;

impl WgpuBackend {
    pub(super) fn check_store(&self, op: &str, store: &Store, layer: usize, heads: &HeadLayout) -> Result<()> {
        let spec = &store.spec;
        if layer >= store.layers.len()
            || spec.num_key_value_heads != heads.num_key_value_heads
            || spec.head_dim != heads.head_dim
            || !heads.head_dim.is_multiple_of(8)
            || heads.head_dim > 256
        {
            return Err(self.misfit(op, format!("layer {layer} and {heads:?} do not fit a store of {spec:?}")));
        }
        Ok(())
    }

    pub(super) fn store_rows(
        &mut self,
        qkv: &Numbers,
        slot_mapping: &Numbers,
        store: &Store,
        layer: usize,
        heads: HeadLayout,
        rows: usize,
    ) -> Result<()> {
        let op = "store_kv";
        self.check_store(op, store, layer, &heads)?;
        self.need(op, "qkv", qkv, rows * heads.qkv_size())?;
        self.need(op, "slot_mapping", slot_mapping, rows)?;
        let shader = store.types(layer).flags(Shader::new(op));
        let half_dim = heads.head_dim / 2;
        for piece in self.pieces(op, rows, &[heads.qkv_size()])? {
            for slab in &store.layers[layer] {
                let first_key = heads.q_size() + slab.first_head * heads.head_dim;
                let pairs = slab.heads * half_dim;
                let first_value = first_key + heads.kv_size();
                let params =
                    [heads.qkv_size(), first_key, first_value, half_dim, store.num_slots(), pairs, piece.start];
                let bindings = [
                    qkv.array.read(words(&piece, heads.qkv_size())),
                    slot_mapping.array.read(0..rows),
                    slab.keys.write_all(),
                    slab.values.write_all(),
                ];
                self.queue_rows(op, &shader, &bindings, &params, (pairs, piece.len()))?;
            }
        }
        Ok(())
    }

    pub(super) fn copy_pairs(&mut self, store: &Store, pairs: &[(u32, u32)]) -> Result<()> {
        let op = "copy_blocks";
        let spec = &store.spec;
        if let Some(pair) = pairs.iter().find(|pair| pair.0.max(pair.1) as usize >= spec.num_blocks) {
            return Err(self.misfit(op, format!("{pair:?} of {} blocks", spec.num_blocks)));
        }
        if pairs.is_empty() {
            return Ok(());
        }
        let mut list = self.alloc_indices(2 * pairs.len())?;
        self.write_indices(&mut list, &pairs.iter().flat_map(|pair| [pair.0, pair.1]).collect::<Vec<_>>())?;
        for (slabs, key_encoding) in store.layers.iter().zip(&spec.key_encodings) {
            for slab in slabs {
                for (array, encoding) in [(&slab.keys, *key_encoding), (&slab.values, spec.value_encoding)] {
                    let block = encoding.bytes(spec.block_size * spec.head_dim) / 4;
                    let params = [block, block * spec.num_blocks, block * slab.heads];
                    let bindings = [array.write_all(), list.numbers.array.read(0..2 * pairs.len())];
                    let size = (block * slab.heads, pairs.len());
                    self.queue_rows(op, &Shader::new("copy_blocks"), &bindings, &params, size)?;
                }
            }
        }
        Ok(())
    }
}
