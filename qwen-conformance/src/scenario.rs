//! Sequences over a paged K/V store, for the attention cases.

use std::ops::Range;

use super::op::{Guarded, GuardedIndices};
use super::random::Rng;
use qwen_core::Encoding;
use qwen_core::backend::{self, Backend, HeadLayout, KvSpec, PAD_SLOT, StepInputs, StepKey};
use qwen_core::error::Result;

/// The layer of the store that is used; the other one holds NaN.
pub(super) const LAYER: usize = 1;

/// Layers of the store.
pub(super) const LAYERS: usize = 2;

/// One sequence of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// The seed of its values: a position of a sequence has the same values in every scenario.
    pub id: u64,
    /// Positions from earlier steps.
    pub computed: usize,
    /// Positions of this step.
    pub tokens: usize,
}

impl Sequence {
    /// Positions at the end of the step.
    pub fn context(&self) -> usize {
        self.computed + self.tokens
    }
}

/// The positions of the sequences' blocks in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// One after the other.
    InOrder,
    /// Anywhere.
    Permuted,
    /// Anywhere, and moved by `copy_blocks` after they were written; the originals are overwritten.
    Copied,
}

/// The distribution of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// Near normal, of deviation 1.
    Normal,
    /// Two channels of each head have a bias of a few hundred, as in Qwen2.5.
    Biased,
}

impl Keys {
    /// The bias of channel `channel` of a head.
    pub fn bias(self, channel: usize) -> f32 {
        match (self, channel) {
            (Keys::Biased, 3) => 250.0,
            (Keys::Biased, 40) => -180.0,
            _ => 0.0,
        }
    }

    /// The RMS of the keys.
    pub fn rms(self, head_dim: usize) -> f64 {
        let biases: f64 = (0..head_dim).map(|channel| f64::from(self.bias(channel)).powi(2)).sum();
        (1.0 + biases / head_dim as f64).sqrt()
    }
}

/// The sequences of one step and the positions of their blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The heads of a row.
    pub heads: HeadLayout,
    /// Positions of a block.
    pub block_size: usize,
    /// The sequences.
    pub sequences: Vec<Sequence>,
    /// The positions of their blocks.
    pub blocks: Blocks,
    /// The distribution of their keys.
    pub keys: Keys,
    /// The encodings of keys and values; `None` for the precision's default.
    pub kv_encodings: Option<(Encoding, Encoding)>,
    /// Padding rows after those of the sequences.
    pub pad_tokens: usize,
    /// Empty sequences after the others.
    pub pad_seqs: usize,
}

/// A scenario's store and step inputs on a device.
#[derive(Debug)]
pub struct Placed<B: Backend> {
    /// The store. Unused positions, the other layer and a spare block hold NaN.
    pub kv: B::Kv,
    /// The step.
    pub inputs: StepInputs<B>,
}

impl Scenario {
    /// Attention of the queries of `qkv` over the step's sequences.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn attend<B: Backend>(
        &self,
        b: &mut B,
        placed: &Placed<B>,
        qkv: &Guarded<B>,
        out: &mut Guarded<B>,
    ) -> Result<()> {
        b.paged_attention(backend::PagedAttention {
            qkv: &qkv.buffer,
            kv: &placed.kv,
            layer: LAYER,
            heads: self.heads,
            inputs: &placed.inputs,
            out: &mut out.buffer,
            key: self.key(),
        })
    }

    /// Sequences of `(computed, tokens)` with permuted blocks of 16 positions and no padding.
    pub fn new(heads: HeadLayout, sequences: &[(usize, usize)]) -> Self {
        let sequence =
            |(id, &(computed, tokens)): (usize, &(usize, usize))| Sequence { id: id as u64, computed, tokens };
        Scenario {
            heads,
            block_size: 16,
            sequences: sequences.iter().enumerate().map(sequence).collect(),
            blocks: Blocks::Permuted,
            keys: Keys::Normal,
            kv_encodings: None,
            pad_tokens: 0,
            pad_seqs: 0,
        }
    }

    /// Rows of the sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens).sum()
    }

    /// The longest context.
    pub fn max_context(&self) -> usize {
        self.sequences.iter().map(Sequence::context).max().unwrap_or(0)
    }

    /// The rows of sequence `index`.
    pub fn rows_of(&self, index: usize) -> Range<usize> {
        let first = self.sequences[..index].iter().map(|sequence| sequence.tokens).sum();
        first..first + self.sequences[index].tokens
    }

    /// The key of the step.
    pub fn key(&self) -> StepKey {
        StepKey {
            num_tokens: self.tokens() + self.pad_tokens,
            num_seqs: self.sequences.len() + self.pad_seqs,
            num_logits: 0,
            max_seqlen_q: self.sequences.iter().map(|sequence| sequence.tokens).max().unwrap_or(0),
            hidden: false,
            adapters: false,
        }
    }

    /// Each token of this step: its sequence and position.
    pub fn positions(&self) -> impl Iterator<Item = (&Sequence, usize)> {
        self.sequences.iter().flat_map(|sequence| (sequence.computed..sequence.context()).map(move |p| (sequence, p)))
    }

    /// A row of the q|k|v buffer after rotation.
    pub fn qkv_row(&self, id: u64, position: usize) -> Vec<f32> {
        let HeadLayout { head_dim, .. } = self.heads;
        let mut row = Rng::of(&[10, id, position as u64]).normals(self.heads.qkv_size(), 1.0);
        for head in row[self.heads.q_size()..][..self.heads.kv_size()].chunks_exact_mut(head_dim) {
            head.iter_mut().enumerate().for_each(|(channel, key)| *key += self.keys.bias(channel));
        }
        row
    }

    fn blocks_of(&self, sequence: &Sequence) -> usize {
        sequence.context().div_ceil(self.block_size)
    }

    /// The blocks of each sequence, and the number of a spare one.
    fn tables(&self) -> (Vec<Vec<u32>>, u32) {
        let used: usize = self.sequences.iter().map(|sequence| self.blocks_of(sequence)).sum();
        let order = match self.blocks {
            Blocks::InOrder => (0..=used as u32).collect(),
            Blocks::Permuted | Blocks::Copied => Rng::of(&[11, used as u64]).permutation(used + 1),
        };
        let mut next = order.iter().copied();
        let tables = self.sequences.iter().map(|sequence| next.by_ref().take(self.blocks_of(sequence)).collect());
        (tables.collect(), order[used])
    }

    fn slot(&self, table: &[u32], position: usize) -> u32 {
        table[position / self.block_size] * self.block_size as u32 + (position % self.block_size) as u32
    }

    /// Create the store and the step inputs. `stored` positions of each sequence are stored.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn place<B: Backend>(&self, b: &mut B, stored: impl Fn(&Sequence) -> usize) -> Result<Placed<B>> {
        let (tables, spare) = self.tables();
        let used = spare.max(tables.iter().flatten().copied().max().unwrap_or(0)) + 1;
        let copied = self.blocks == Blocks::Copied;
        let default = b.info().precision.kv_encoding();
        let (key, value) = self.kv_encodings.unwrap_or((default, default));
        let mut kv = b.kv(&KvSpec {
            key_encodings: vec![key; LAYERS],
            value_encoding: value,
            num_blocks: used as usize * if copied { 2 } else { 1 },
            block_size: self.block_size,
            num_key_value_heads: self.heads.num_key_value_heads,
            head_dim: self.heads.head_dim,
        })?;
        let (width, slots) = (self.heads.qkv_size(), used as usize * self.block_size);
        let poison = |b: &mut B, kv: &mut B::Kv, first: usize| {
            let x = Guarded::new(b, &vec![f32::NAN; slots * width])?;
            let every: Vec<u32> = (first..first + slots).map(|slot| slot as u32).collect();
            let every = GuardedIndices::new(b, &every)?;
            (0..LAYERS).try_for_each(|layer| {
                b.store_kv(backend::StoreKv {
                    qkv: &x.buffer,
                    slot_mapping: &every.buffer,
                    kv,
                    layer,
                    heads: self.heads,
                    rows: slots,
                })
            })
        };
        poison(b, &mut kv, 0)?;
        let (mut values, mut at) = (Vec::new(), Vec::new());
        for (sequence, table) in self.sequences.iter().zip(&tables) {
            for position in 0..stored(sequence) {
                values.extend(self.qkv_row(sequence.id, position));
                at.push(self.slot(table, position));
                // Padding rows must not be stored.
                if position % 7 == 3 {
                    values.extend(vec![f32::NAN; width]);
                    at.push(PAD_SLOT);
                }
            }
        }
        let rows = at.len();
        let (x, at) = (Guarded::new(b, &values)?, GuardedIndices::new(b, &at)?);
        b.store_kv(backend::StoreKv {
            qkv: &x.buffer,
            slot_mapping: &at.buffer,
            kv: &mut kv,
            layer: LAYER,
            heads: self.heads,
            rows,
        })?;
        let moved = if copied { used } else { 0 };
        if copied {
            let pairs: Vec<(u32, u32)> = (0..used).map(|block| (block, block + used)).collect();
            b.copy_blocks(&mut kv, &pairs)?;
            poison(b, &mut kv, 0)?;
        }
        let tables: Vec<Vec<u32>> =
            tables.into_iter().map(|table| table.into_iter().map(|block| block + moved).collect()).collect();
        Ok(Placed { kv, inputs: self.inputs(b, &tables, spare + moved)? })
    }

    fn inputs<B: Backend>(&self, b: &mut B, tables: &[Vec<u32>], spare: u32) -> Result<StepInputs<B>> {
        let (head_dim, key) = (self.heads.head_dim, self.key());
        let max_blocks_per_seq = tables.iter().map(Vec::len).max().unwrap_or(0) + 1;
        // Table entries beyond a sequence's blocks refer to a block of NaNs.
        let mut block_tables = vec![spare; key.num_seqs * max_blocks_per_seq];
        for (row, table) in block_tables.chunks_exact_mut(max_blocks_per_seq).zip(tables) {
            row[..table.len()].copy_from_slice(table);
        }
        let mut cu_seqlens_q = vec![0];
        for sequence in &self.sequences {
            cu_seqlens_q.push(cu_seqlens_q[cu_seqlens_q.len() - 1] + sequence.tokens as u32);
        }
        cu_seqlens_q.resize(key.num_seqs + 1, self.tokens() as u32);
        let mut context_lens: Vec<u32> = self.sequences.iter().map(|sequence| sequence.context() as u32).collect();
        context_lens.resize(key.num_seqs, 0);
        let mut slots = Vec::new();
        for (sequence, table) in self.sequences.iter().zip(tables) {
            slots.extend((sequence.computed..sequence.context()).map(|position| self.slot(table, position)));
        }
        slots.resize(key.num_tokens, PAD_SLOT);
        let mut angles: Vec<f32> = self.positions().flat_map(|(_, position)| cos_sin(position, head_dim)).collect();
        angles.resize(key.num_tokens * head_dim, 0.0);
        Ok(StepInputs {
            input_ids: GuardedIndices::new(b, &vec![0; key.num_tokens])?.buffer,
            cos_sin: Guarded::new(b, &angles)?.buffer,
            slot_mapping: GuardedIndices::new(b, &slots)?.buffer,
            cu_seqlens_q: GuardedIndices::new(b, &cu_seqlens_q)?.buffer,
            context_lens: GuardedIndices::new(b, &context_lens)?.buffer,
            block_tables: GuardedIndices::new(b, &block_tables)?.buffer,
            max_blocks_per_seq,
            logits_indices: GuardedIndices::new(b, &[])?.buffer,
        })
    }

    /// Bytes of the keys and values that the step's tokens see, counted once per sequence.
    pub fn kv_bytes(&self, bytes_per_value: usize) -> usize {
        let positions: usize = self.sequences.iter().map(Sequence::context).sum();
        2 * positions * self.heads.kv_size() * bytes_per_value
    }

    /// Multiplications and additions of the scores and the weighted sums.
    pub fn flops(&self) -> u64 {
        let seen: usize = self.positions().map(|(_, position)| position + 1).sum();
        4 * (seen * self.heads.q_size()) as u64
    }
}

/// The cosines and sines of `position` in the layout of [`qwen_core::backend::StepInputs::cos_sin`], for a theta of
/// 1e6.
pub(crate) fn cos_sin(position: usize, head_dim: usize) -> Vec<f32> {
    let angle = |i: usize| position as f64 * 1e6f64.powf(-2.0 * i as f64 / head_dim as f64);
    let half = 0..head_dim / 2;
    half.clone().map(|i| angle(i).cos() as f32).chain(half.map(|i| angle(i).sin() as f32)).collect()
}
