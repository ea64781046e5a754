//! Keys and values of a step into the paged store.

use qwen_core::Result;
use qwen_core::backend::{HeadLayout, StoreKv};

use crate::executor::{WgpuBackend, words};
use crate::kv::{KvType, Store};
use crate::shader::Shader;

/// Refuse heads whose row size overflows.
pub(crate) fn check_heads(b: &WgpuBackend, op: &str, heads: &HeadLayout) -> Result<()> {
    let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
    let all = num_key_value_heads.checked_mul(2).and_then(|heads| heads.checked_add(num_attention_heads));
    match all.and_then(|all| all.checked_mul(head_dim)) {
        Some(_) => Ok(()),
        None => Err(b.error(op, format!("the row size of {heads:?} overflows"))),
    }
}

/// Refuse heads that do not fit layer `layer` of a store.
pub(crate) fn check_store(b: &WgpuBackend, op: &str, store: &Store, layer: usize, heads: &HeadLayout) -> Result<()> {
    check_heads(b, op, heads)?;
    let spec = &store.spec;
    if !spec.serves(layer, heads) || !heads.head_dim.is_multiple_of(8) || !(8..=256).contains(&heads.head_dim) {
        return Err(b.error(op, format!("layer {layer} and {heads:?} do not fit a store of {spec:?}")));
    }
    Ok(())
}

pub(crate) fn store_kv(b: &mut WgpuBackend, op: StoreKv<'_, WgpuBackend>) -> Result<()> {
    let StoreKv { qkv, slot_mapping, kv, layer, heads, rows, .. } = op;
    let (op, store) = ("store_kv", &kv.0);
    check_store(b, op, store, layer, &heads)?;
    b.need(op, "qkv", &qkv.0, &[rows, heads.qkv_size()])?;
    b.need(op, "slot_mapping", &slot_mapping.words, &[rows])?;
    let shader = store.types(layer).flags(Shader::new(op));
    let half_dim = heads.head_dim / 2;
    for piece in b.pieces(op, rows, &[heads.qkv_size()])? {
        for slab in &store.layers[layer] {
            let first_key = heads.q_size() + slab.first_head * heads.head_dim;
            let first_value = first_key + heads.kv_size();
            let pairs = slab.heads * half_dim;
            let params = [heads.qkv_size(), first_key, first_value, half_dim, store.num_slots, pairs, piece.start];
            let bindings = [
                qkv.0.array.read(words(&piece, heads.qkv_size())),
                slot_mapping.words.array.read(0..rows),
                slab.keys.write_all(),
                slab.values.write_all(),
            ];
            let types = store.types(layer);
            if types.key != KvType::Q8 || types.value != KvType::Q8 {
                b.queue_rows(op, &shader, &bindings, &params, (pairs, piece.len()))?;
            }
            // Sixteen threads for 64 channels.
            let threads = slab.heads * heads.head_dim.div_ceil(64) * 16;
            for (side, first, array) in [(types.key, first_key, &slab.keys), (types.value, first_value, &slab.values)] {
                if side == KvType::Q8 {
                    let params = [heads.qkv_size(), first, heads.head_dim, store.num_slots, threads, piece.start];
                    let bindings = [bindings[0], bindings[1], array.write_all()];
                    b.queue_rows(op, &Shader::new("store_kv_q8"), &bindings, &params, (threads, piece.len()))?;
                }
            }
        }
    }
    Ok(())
}
