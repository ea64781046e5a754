//! Copies of K/V blocks, for sequences that shared them.

use qwen_core::Result;

use crate::executor::WgpuBackend;
use crate::kv::{Plane, Store};
use crate::ops::host;
use crate::shader::Shader;

/// Copy blocks of all layers, each `(from, to)`.
pub(crate) fn copy_blocks(b: &mut WgpuBackend, store: &Store, pairs: &[(u32, u32)]) -> Result<()> {
    let (op, spec) = ("copy_blocks", &store.spec);
    if let Some(pair) = pairs.iter().find(|pair| pair.0.max(pair.1) as usize >= spec.num_blocks) {
        return Err(b.error(op, format!("{pair:?} of {} blocks", spec.num_blocks)));
    }
    if pairs.is_empty() {
        return Ok(());
    }
    let list = b.words(2 * pairs.len())?;
    let numbers: Vec<[u8; 4]> = pairs.iter().flat_map(|(from, to)| [from, to]).map(|id| id.to_le_bytes()).collect();
    host::write(b, op, &list, numbers.into_iter())?;
    for (slabs, key_encoding) in store.layers.iter().zip(&spec.key_encodings) {
        for slab in slabs {
            for (array, encoding) in [(&slab.keys, *key_encoding), (&slab.values, spec.value_encoding)] {
                for Plane { first_word, block_words } in store.planes(encoding) {
                    let words = block_words * slab.heads;
                    let params = [block_words, store.head_words(encoding), words, first_word];
                    let bindings = [array.write_all(), list.array.read(0..2 * pairs.len())];
                    b.queue_rows(op, &Shader::new(op), &bindings, &params, (words, pairs.len()))?;
                }
            }
        }
    }
    Ok(())
}
