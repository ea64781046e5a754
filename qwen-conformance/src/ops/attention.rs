//! `paged_attention`, and through it `store_kv` and `copy_blocks`: a K/V store can only be observed by attending to it.

use super::rope::{GEOMETRIES, heads};
use crate::compare;
use crate::op::{Allowed, Cost, Guarded, Op, Output};
use crate::rig::Rig;
use crate::scenario::{Blocks, Keys, Placed, Scenario, Sequence};
use crate::tolerance;
use qwen_core::Precision;
use qwen_core::backend::Backend;
use qwen_core::error::Result;

/// `paged_attention` over a scenario.
#[derive(Debug, Clone)]
pub struct Attention(pub Scenario);

/// The buffers of an [`Attention`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    placed: Placed<B>,
    qkv: Guarded<B>,
    out: Guarded<B>,
}

impl Op for Attention {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        let activations = 8 * self.0.tokens() * self.0.heads.q_size();
        Cost { bytes: (self.0.kv_bytes(2) + activations) as u64, flops: self.0.flops() }
    }

    fn allowed(&self, precision: Precision, _output: &str) -> Allowed {
        let Scenario { heads, keys, kv_encodings, .. } = &self.0;
        let score = keys.rms(heads.head_dim);
        let precision = tolerance::precision_of(*kv_encodings, precision);
        Allowed::rms(tolerance::attention(precision, heads.head_dim, self.0.max_context(), score))
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        let scenario = &self.0;
        let key = scenario.key();
        let mut qkv: Vec<f32> = scenario.positions().flat_map(|(s, p)| scenario.qkv_row(s.id, p)).collect();
        qkv.resize(key.num_tokens * scenario.heads.qkv_size(), f32::NAN);
        Ok(OnDevice {
            placed: scenario.place(b, Sequence::context)?,
            qkv: Guarded::new(b, &qkv)?,
            out: Guarded::output(b, key.num_tokens * scenario.heads.q_size())?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        let OnDevice { placed, qkv, out } = on;
        self.0.attend(b, placed, qkv, out)
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("out", &on.out, self.0.tokens(), self.0.heads.q_size())]
    }
}

/// The heads of every published size: a prompt, a chunk and single tokens in one batch.
pub fn every_geometry<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for (_, heads) in GEOMETRIES {
        rig.check(&Attention(Scenario::new(heads, &[(0, 9), (40, 1), (0, 1), (15, 2)])))?;
    }
    for (_, heads) in GEOMETRIES {
        rig.check(&Attention(Scenario::new(heads, &[(33, 1), (16, 1)])))?;
    }
    Ok(())
}

/// Contexts just below, at and above block boundaries, up to several hundred.
pub fn contexts<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let heads = heads(7, 1, 64);
    let lengths = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 513, 700];
    let decode: Vec<(usize, usize)> = lengths.iter().map(|len| (len - 1, 1)).collect();
    rig.check(&Attention(Scenario::new(heads, &decode)))?;
    for &len in &lengths[..17] {
        rig.check(&Attention(Scenario::new(heads, &[(0, len)])))?;
    }
    for (computed, tokens) in [(1, 2), (15, 1), (15, 2), (16, 16), (17, 31), (250, 13), (640, 60), (100, 100)] {
        rig.check(&Attention(Scenario::new(heads, &[(computed, tokens)])))?;
    }
    Ok(())
}

/// Many sequences of unequal lengths in one step, in blocks of several sizes, with padding.
pub fn ragged_batches<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let sequences = [(0, 33), (700, 1), (0, 1), (47, 16), (12, 5), (255, 1), (256, 1), (0, 17), (31, 2)];
    for block_size in [16, 32, 64, 256] {
        for (pad_tokens, pad_seqs) in [(0, 0), (5, 3)] {
            let scenario = Scenario::new(heads(6, 2, 64), &sequences);
            rig.check(&Attention(Scenario { block_size, pad_tokens, pad_seqs, ..scenario }))?;
        }
    }
    rig.check(&Attention(Scenario::new(heads(5, 1, 128), &sequences)))
}

/// Keys with biases of a few hundred, for which bf16 keys are too coarse.
pub fn biased_keys<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for heads in [heads(4, 2, 64), heads(7, 1, 128)] {
        let scenario = Scenario::new(heads, &[(0, 40), (99, 1), (16, 9)]);
        rig.check(&Attention(Scenario { keys: Keys::Biased, ..scenario }))?;
    }
    Ok(())
}

/// The position of blocks changes no bit.
pub fn permuted_blocks<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for heads in [heads(14, 2, 64), heads(5, 1, 128)] {
        let of = |blocks| Attention(Scenario { blocks, ..Scenario::new(heads, &[(0, 40), (99, 1), (250, 9)]) });
        let whole = rig.run(&of(Blocks::InOrder))?;
        rig.check_same_rows((&of(Blocks::Permuted), 0..50), (&whole, 0..50))?;
        rig.check_same_rows((&of(Blocks::Copied), 0..50), (&whole, 0..50))?;
        rig.check(&of(Blocks::InOrder))?;
        rig.check(&of(Blocks::Copied))?;
    }
    Ok(())
}

/// Padding rows and padding sequences change no bit of the others.
pub fn padding<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for sequences in [&[(0, 20), (35, 1)][..], &[(17, 1), (300, 1), (0, 1)], &[(0, 3)]] {
        let of = |pad_tokens, pad_seqs| {
            Attention(Scenario { pad_tokens, pad_seqs, ..Scenario::new(heads(14, 2, 64), sequences) })
        };
        let rows = of(0, 0).0.tokens();
        let whole = rig.run(&of(0, 0))?;
        for (pad_tokens, pad_seqs) in [(1, 0), (0, 1), (7, 5), (61, 2)] {
            rig.check(&of(pad_tokens, pad_seqs))?;
            rig.check_same_rows((&of(pad_tokens, pad_seqs), 0..rows), (&whole, 0..rows))?;
        }
    }
    Ok(())
}

/// A prompt at once, in chunks and token by token, alone and among others: the same bits.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    for (heads, len) in [(heads(14, 2, 64), 150), (heads(5, 1, 128), 300)] {
        let of = |computed, tokens| Attention(Scenario::new(heads, &[(computed, tokens)]));
        let whole = rig.run(&of(0, len))?;
        for chunk in [1, 7, 16, 31, 64, 100] {
            for computed in (0..len).step_by(chunk) {
                // Checking every seventh single token is enough, and those around block boundaries.
                if chunk == 1 && !(computed % 7 == 0 || computed % 16 == 0 || computed % 16 == 15) {
                    continue;
                }
                let tokens = chunk.min(len - computed);
                rig.check_same_rows((&of(computed, tokens), 0..tokens), (&whole, computed..computed + tokens))?;
            }
        }
        among_others(rig, of(0, len).0)?;
    }
    Ok(())
}

pub(super) fn among_others<B: Backend>(rig: &mut Rig<'_, B>, alone: Scenario) -> Result<()> {
    let whole = rig.run(&Attention(alone.clone()))?;
    let other = |id, computed, tokens| Sequence { id, computed, tokens };
    let mine = |computed, tokens| Sequence { computed, tokens, ..alone.sequences[0] };
    let len = alone.max_context();
    for own in [mine(0, len), mine(0, 9), mine(20, 40), mine(len - 1, 1), mine(17, 1)] {
        for others in [[other(7, 0, 1), other(8, 33, 1)], [other(7, 0, 65), other(8, 200, 3)]] {
            let batch = Attention(Scenario { sequences: vec![others[0], own, others[1]], ..alone.clone() });
            let rows = batch.0.rows_of(1);
            rig.check_same_rows((&batch, rows), (&whole, own.computed..own.context()))?;
        }
    }
    Ok(())
}

/// A token that sees only one position gets exactly that position's value.
pub fn first_position<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let scenario = Scenario::new(heads(12, 2, 128), &[(0, 1), (0, 1), (0, 1)]);
    let out = rig.run(&Attention(scenario.clone()))?;
    let (heads, width) = (scenario.heads, scenario.heads.q_size());
    for (row, sequence) in scenario.sequences.iter().enumerate() {
        let values = &scenario.qkv_row(sequence.id, 0)[heads.q_size() + heads.kv_size()..];
        let group = heads.num_attention_heads / heads.num_key_value_heads;
        let expected: Vec<f32> = (0..heads.num_attention_heads)
            .flat_map(|head| &values[head / group * heads.head_dim..][..heads.head_dim])
            .copied()
            .collect();
        let tolerance = match rig.precision {
            Precision::Exact => tolerance::ELEMENTWISE,
            Precision::Fast => 1.0 / 2048.0,
        };
        let outcome = compare::rms(&out[0].values[row * width..][..width], &expected, width, tolerance, 0.0);
        rig.note(|| format!("sequence {row} of three with one position each"), outcome);
    }
    Ok(())
}
