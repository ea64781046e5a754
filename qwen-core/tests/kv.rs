//! Properties of K/V block bookkeeping, over random sequence lifetimes.

use std::collections::HashMap;

use proptest::prelude::*;
use qwen_core::engine::kv::{BlockPool, BlockTable};
use qwen_core::model::batch::BlockId;

const BLOCK_SIZE: usize = 4;
const NUM_BLOCKS: usize = 24;

/// Something that happens to the sequences.
#[derive(Debug, Clone)]
enum Event {
    /// A new one.
    Start,
    /// The one with this index gets more positions.
    Grow(usize, usize),
    /// A second one over the blocks of the one with this index.
    Fork(usize),
    /// The one with this index ends.
    End(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => Just(Event::Start),
        8 => (0..8usize, 1..11usize).prop_map(|(index, tokens)| Event::Grow(index, tokens)),
        3 => (0..8usize).prop_map(Event::Fork),
        2 => (0..8usize).prop_map(Event::End),
    ];
    proptest::collection::vec(event, 1..80)
}

/// A sequence, and what it has written to each of its positions.
struct Sequence {
    table: BlockTable,
    written: Vec<u64>,
}

/// The sequences over a pool, and the contents of each slot; the copies that tables request are made.
struct World {
    pool: BlockPool,
    sequences: Vec<Sequence>,
    slots: HashMap<(BlockId, usize), u64>,
    writes: u64,
}

impl World {
    fn apply(&mut self, event: &Event) {
        let count = self.sequences.len();
        let pick = |index: &usize| (count > 0).then(|| index % count);
        match event {
            Event::Start => self.sequences.push(Sequence { table: BlockTable::new(BLOCK_SIZE), written: Vec::new() }),
            Event::Grow(index, tokens) => {
                let Some(index) = pick(index) else { return };
                self.grow(index, *tokens);
            }
            Event::Fork(index) => {
                let Some(index) = pick(index) else { return };
                let Sequence { table, written } = &self.sequences[index];
                let fork = Sequence { table: table.fork(written.len(), &mut self.pool), written: written.clone() };
                self.sequences.push(fork);
            }
            Event::End(index) => {
                let Some(index) = pick(index) else { return };
                self.sequences.swap_remove(index).table.free(&mut self.pool);
            }
        }
    }

    fn grow(&mut self, index: usize, tokens: usize) {
        let Sequence { table, written } = &mut self.sequences[index];
        let (computed, before, free) = (written.len(), table.blocks().to_vec(), self.pool.num_free());
        match table.reserve(computed, computed + tokens, &mut self.pool) {
            Err(_) => {
                assert_eq!(table.blocks(), before, "a failed reservation changed the table");
                assert_eq!(self.pool.num_free(), free, "a failed reservation kept blocks");
            }
            Ok(copy) => {
                if let Some(copy) = copy {
                    for offset in 0..BLOCK_SIZE {
                        let value = self.slots.get(&(copy.from, offset)).copied();
                        value.map(|value| self.slots.insert((copy.to, offset), value));
                    }
                }
                for position in computed..computed + tokens {
                    let block = table.blocks()[position / BLOCK_SIZE];
                    assert_eq!(self.pool.ref_count(block), 1, "position {position} is written to a shared block");
                    self.writes += 1;
                    self.slots.insert((block, position % BLOCK_SIZE), self.writes);
                    written.push(self.writes);
                }
            }
        }
    }

    fn check(&self) {
        let mut references: HashMap<BlockId, u32> = HashMap::new();
        for Sequence { table, written } in &self.sequences {
            for &block in table.blocks() {
                *references.entry(block).or_default() += 1;
            }
            for (position, value) in written.iter().enumerate() {
                let slot = (table.blocks()[position / BLOCK_SIZE], position % BLOCK_SIZE);
                assert_eq!(self.slots.get(&slot), Some(value), "position {position} was overwritten");
            }
        }
        for block in (0..NUM_BLOCKS as u32).map(BlockId) {
            assert_eq!(self.pool.ref_count(block), references.get(&block).copied().unwrap_or(0), "{block:?}");
        }
        assert_eq!(self.pool.num_free(), NUM_BLOCKS - references.len());
    }
}

proptest! {
    /// Whatever sequences do: counts balance, no sequence overwrites another's data, and a failed reservation changes
    /// nothing.
    #[test]
    fn sequences_keep_what_they_wrote(events in events()) {
        let (pool, sequences) = (BlockPool::new(NUM_BLOCKS), Vec::new());
        let mut world = World { pool, sequences, slots: HashMap::new(), writes: 0 };
        for event in &events {
            world.apply(event);
            world.check();
        }
        let World { mut pool, sequences, .. } = world;
        sequences.into_iter().for_each(|sequence| sequence.table.free(&mut pool));
        prop_assert_eq!(pool.num_free(), NUM_BLOCKS);
    }

    /// The pool hands out each block once.
    #[test]
    fn a_block_is_handed_out_once(count in 0..40usize) {
        let mut pool = BlockPool::new(count);
        let mut blocks: Vec<BlockId> = (0..count).map(|_| pool.allocate().expect("a free block")).collect();
        prop_assert!(pool.allocate().is_err());
        blocks.sort_unstable();
        blocks.dedup();
        prop_assert_eq!(blocks.len(), count);
    }
}
