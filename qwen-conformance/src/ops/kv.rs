//! The K/V store: initial contents, slots, layers, padding, copies.

use super::attention::Attention;
pub use super::kv_bytes::through_the_host;
use super::kv_rows;
use super::rope::heads;
use crate::compare;
use crate::rig::Rig;
use crate::scenario::{Blocks, Scenario};
use qwen_core::Encoding;
use qwen_core::backend::{Backend, HeadLayout, KvSpec, PAD_SLOT};
use qwen_core::error::Result;

const HEADS: HeadLayout = heads(5, 1, 64);
const BLOCK: usize = 16;
const BLOCKS: usize = 4;

/// A small store of two layers and a way to observe all of it.
struct Store<'a, 'b, B: Backend> {
    rig: &'a mut Rig<'b, B>,
    kv: B::Kv,
}

impl<'a, 'b, B: Backend> Store<'a, 'b, B> {
    fn new(rig: &'a mut Rig<'b, B>) -> Result<Self> {
        let encoding = rig.precision.kv_encoding();
        let (num_key_value_heads, head_dim) = (HEADS.num_key_value_heads, HEADS.head_dim);
        let spec = KvSpec {
            key_encodings: vec![encoding, Encoding::F32],
            value_encoding: encoding,
            num_blocks: BLOCKS,
            block_size: BLOCK,
            num_key_value_heads,
            head_dim,
        };
        let kv = rig.b.kv(&spec)?;
        Ok(Store { rig, kv })
    }

    fn row(&self, seed: usize) -> Vec<f32> {
        Scenario::new(HEADS, &[]).qkv_row(1000, seed)
    }

    /// Store row `seed` at each `(slot, seed)`.
    fn store(&mut self, layer: usize, at: &[(u32, usize)]) -> Result<()> {
        let values: Vec<f32> = at.iter().flat_map(|(_, seed)| self.row(*seed)).collect();
        let slots: Vec<u32> = at.iter().map(|(slot, _)| *slot).collect();
        kv_rows::store(&mut self.rig.b, HEADS, (&mut self.kv, layer), &slots, &values)
    }

    /// The attention of a fixed query to each block of a layer: a value that changes with any of its bits.
    fn look(&mut self, layer: usize) -> Result<Vec<f32>> {
        let row = Scenario::new(HEADS, &[]).qkv_row(2000, 0);
        let context_lens = vec![BLOCK as u32; BLOCKS];
        kv_rows::look(&mut self.rig.b, HEADS, (&self.kv, layer), context_lens, &row.repeat(BLOCKS))
    }

    fn same(&mut self, what: &str, got: &[f32], expected: &[f32]) {
        self.rig.note(|| what.into(), compare::bits(got, expected, HEADS.q_size()));
    }

    fn differs(&mut self, what: &str, got: &[f32], before: &[f32]) {
        let outcome = match compare::bits(got, before, HEADS.q_size()) {
            Ok(()) => Err("nothing changed".to_string()),
            Err(_) => Ok(()),
        };
        self.rig.note(|| what.into(), outcome);
    }
}

fn all_slots(first_seed: usize) -> Vec<(u32, usize)> {
    (0..BLOCKS * BLOCK).map(|slot| (slot as u32, first_seed + slot)).collect()
}

/// A new store holds zeros: attention over it gives zeros.
pub fn zero_at_first<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut store = Store::new(rig)?;
    for layer in 0..2 {
        let seen = store.look(layer)?;
        let wrong = seen.iter().position(|value| *value != 0.0);
        let outcome = wrong.map_or(Ok(()), |index| Err(format!("{} at index {index}", seen[index])));
        store.rig.note(|| format!("layer {layer} of a new store"), outcome);
    }
    Ok(())
}

/// Slots and layers are independent: storing to one changes no other.
pub fn slots_and_layers<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut store = Store::new(rig)?;
    store.store(0, &all_slots(0))?;
    store.store(1, &all_slots(500))?;
    let (first, second) = (store.look(0)?, store.look(1)?);
    store.differs("layer 1 against layer 0", &second, &first);
    // One position of block 2 in layer 1.
    let slot = (2 * BLOCK + 5) as u32;
    store.store(1, &[(slot, 9999)])?;
    let (first_now, second_now) = (store.look(0)?, store.look(1)?);
    store.same("layer 0 after a store to layer 1", &first_now, &first);
    let block = |index: usize| index * HEADS.q_size()..(index + 1) * HEADS.q_size();
    for other in [0, 1, 3] {
        store.same("a block beside the one stored to", &second_now[block(other)], &second[block(other)]);
    }
    store.differs("the block stored to", &second_now[block(2)], &second[block(2)]);
    // Restore the old value: the store has to return to its old state.
    store.store(1, &[(slot, 500 + slot as usize)])?;
    let again = store.look(1)?;
    store.same("the old value stored again", &again, &second);
    Ok(())
}

/// One call with slots in any order gives the same as one call per slot.
pub fn order_of_slots<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut at = all_slots(0);
    let mut store = Store::new(rig)?;
    store.store(0, &at)?;
    let expected = store.look(0)?;
    let mut store = Store::new(store.rig)?;
    at.reverse();
    at.swap(3, 40);
    store.store(0, &at)?;
    let seen = store.look(0)?;
    store.same("slots in another order", &seen, &expected);
    let mut store = Store::new(store.rig)?;
    for one in at {
        store.store(0, &[one])?;
    }
    let seen = store.look(0)?;
    store.same("slots one at a time", &seen, &expected);
    Ok(())
}

/// Padding is not stored.
pub fn padding_is_not_stored<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut store = Store::new(rig)?;
    store.store(0, &all_slots(0))?;
    store.store(1, &all_slots(500))?;
    let before = (store.look(0)?, store.look(1)?);
    for layer in 0..2 {
        store.store(layer, &[(PAD_SLOT, 7)])?;
        store.store(layer, &[(PAD_SLOT, 7); 33])?;
        store.store(layer, &[])?;
    }
    let after = (store.look(0)?, store.look(1)?);
    store.same("layer 0 after padding", &after.0, &before.0);
    store.same("layer 1 after padding", &after.1, &before.1);
    let mut mixed = all_slots(0);
    for at in [0, 17, 64] {
        mixed.insert(at, (PAD_SLOT, 12345));
    }
    store.store(0, &mixed)?;
    let after = store.look(0)?;
    store.same("padding among the rows", &after, &before.0);
    Ok(())
}

/// Blocks are copied in all layers, and the others stay.
pub fn copy_blocks<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut store = Store::new(rig)?;
    store.store(0, &all_slots(0))?;
    store.store(1, &all_slots(500))?;
    let before = [store.look(0)?, store.look(1)?];
    store.rig.b.copy_blocks(&mut store.kv, &[])?;
    store.rig.b.copy_blocks(&mut store.kv, &[(0, 3), (2, 1)])?;
    let block = |index: usize| index * HEADS.q_size()..(index + 1) * HEADS.q_size();
    for (layer, before) in before.iter().enumerate() {
        let after = store.look(layer)?;
        for (from, to) in [(0, 0), (0, 3), (2, 1), (2, 2)] {
            store.same(&format!("layer {layer}, block {to}"), &after[block(to)], &before[block(from)]);
        }
    }
    // Larger stores, over all blocks, observed through attention.
    for heads in [heads(12, 2, 128), heads(64, 8, 128)] {
        let scenario = Scenario::new(heads, &[(30, 3), (15, 1)]);
        store.rig.check(&Attention(Scenario { blocks: Blocks::Copied, ..scenario }))?;
    }
    Ok(())
}
