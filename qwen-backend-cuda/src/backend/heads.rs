//! `rope` and `store_kv`: heads of q|k|v rows, rotated in place or stored.

use qwen_core::Result;
use qwen_core::backend::{HeadLayout, Rope, StoreKv};

use super::{CudaBackend, CudaBuffer};
use crate::kernel::Kernel;
use crate::launch::Args;
use crate::params::Heads;

impl CudaBackend {
    pub(super) fn queue_rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        let Rope { qkv, cos_sin, heads, rows, .. } = op;
        self.check_heads("rope", &heads)?;
        let mut args = Args::new(&self.gpu, "rope");
        let params = Heads {
            cos_sin: args.take("cos_sin", &cos_sin.0.array, &[4, rows, heads.head_dim])?,
            ..qkv_params(&mut args, qkv, heads, rows)?
        };
        let command = args.launch(Kernel::Rope, [rows, 1, 1], &params)?;
        self.queue(command)
    }

    pub(super) fn queue_store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        let StoreKv { qkv, slot_mapping, kv, layer, heads, rows, .. } = op;
        let store = &kv.0;
        self.check_store("store_kv", store, layer, &heads)?;
        let held = &store.layers[layer];
        let mut args = Args::new(&self.gpu, "store_kv");
        let params = Heads {
            slot_mapping: args.take("slot_mapping", &slot_mapping.0.array, &[4, rows])?,
            keys: args.take("keys", &held.keys, &store.array_bytes(held.key_type))?,
            values: args.take("values", &held.values, &store.array_bytes(held.value_type))?,
            num_slots: store.num_slots(),
            key_encoding: held.key_type.code(),
            value_encoding: held.value_type.code(),
            ..qkv_params(&mut args, qkv, heads, rows)?
        };
        let command = args.launch(Kernel::StoreKv, [rows, 1, 1], &params)?;
        self.queue(command)
    }
}

/// The parameters of both kernels.
fn qkv_params(args: &mut Args<'_>, qkv: &CudaBuffer, heads: HeadLayout, rows: usize) -> Result<Heads> {
    Ok(Heads {
        qkv: args.take("qkv", &qkv.0.array, &[4, rows, heads.qkv_size()])?,
        rows: args.size(rows)?,
        num_attention_heads: args.size(heads.num_attention_heads)?,
        num_key_value_heads: args.size(heads.num_key_value_heads)?,
        head_dim: args.size(heads.head_dim)?,
        ..Heads::default()
    })
}
