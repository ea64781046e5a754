//! K/V stored in blocks of signed bytes (Q8_0): what is stored, attention over it, the same bits in any batch. Cases
//! are skipped, with the backend's reason, if it only supports F32 and F16.

use super::Form;
use super::attention::{Attention, among_others};
use super::kv_rows::{self, BOTH, refusal, spec};
use super::qkv_rope_store::QkvRopeStoreOp;
use super::rope::{GEOMETRIES, heads};
use crate::compare;
use crate::random::Rng;
use crate::rig::Rig;
use crate::scenario::{Blocks, Keys, Scenario};
use crate::tolerance;
use qwen_core::Encoding;
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{Backend, HeadLayout, KvSpec};
use qwen_core::error::{Error, Result};
use qwen_core::numerics::encoding::q8;

fn scenario(heads: HeadLayout, sequences: &[(usize, usize)]) -> Scenario {
    Scenario { kv_encodings: Some(BOTH), ..Scenario::new(heads, sequences) }
}

/// What the footprint refuses is refused by `kv` too, and both refuse heads that are not whole blocks.
pub fn refusals<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let refused = refusal(rig)?.is_some();
    let mut whole = vec![(spec(BOTH, 80), true), (spec((Encoding::F32, Encoding::Q8_0), 48), true)];
    whole.push((spec(BOTH, 64), refused));
    whole.push((spec((Encoding::Q4_0, Encoding::F32), 64), true));
    for (spec, refused) in whole {
        let planned = rig.b.footprint().kv_bytes(&spec).err();
        let made = rig.b.kv(&spec).err();
        for (who, error) in [("footprint", planned), ("kv", made)] {
            let outcome = match error {
                Some(Error::Unsupported { what, reason }) if refused && what.contains("K/V") => match reason.is_empty()
                {
                    false => Ok(()),
                    true => Err("says no reason".into()),
                },
                None if !refused => Ok(()),
                other => Err(format!("{other:?}")),
            };
            rig.note(|| format!("{who} of {spec:?}"), outcome);
        }
    }
    Ok(())
}

/// Heads that exercise rounding: ties, zeros, values so small that F16 scales have few digits, values beyond F16, one
/// that is far larger than its neighbours.
fn telling_heads(head_dim: usize) -> Vec<Vec<f32>> {
    let head = |value: &dyn Fn(usize) -> f32| (0..head_dim).map(value).collect::<Vec<f32>>();
    let normal = Rng::of(&[50]).normals(head_dim, 1.0);
    vec![
        head(&|i| if i % 32 == 0 { 127.0 } else { i as f32 - 20.5 }),
        head(&|i| if i % 32 == 31 { -127.0 } else { 0.5 * i as f32 }),
        head(&|_| 0.0),
        head(&|i| if i < 32 { 0.0 } else { normal[i] }),
        head(&|i| 1e-6 * normal[i]),
        head(&|i| 1e-9 * normal[i]),
        head(&|i| 1e5 * normal[i]),
        head(&|i| if i == 7 { 3e8 } else { 1e6 * normal[i] }),
        head(&|i| if i == 40 { 300.0 } else { normal[i] }),
        normal.clone(),
    ]
}

/// A token that sees one position gets its stored value, to the last bit; keys change the weights of two positions as
/// in the reference.
pub fn rounding<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    for heads in [heads(2, 1, 64), heads(1, 1, 128)] {
        let dim = heads.head_dim;
        let telling = telling_heads(dim);
        let row = |key: &[f32], value: &[f32]| {
            let queries = Rng::of(&[51]).normals(heads.q_size(), 0.3);
            [&queries, key, value].concat()
        };
        let zeros = vec![0.0; dim];
        let single: Vec<Vec<Vec<f32>>> = telling.iter().map(|value| vec![row(&zeros, value)]).collect();
        let got = kv_rows::attend(&mut rig.b, heads, BOTH, &single)?;
        for (i, (value, got)) in telling.iter().zip(&got).enumerate() {
            let mut expected = value.clone();
            q8::store_and_read(&mut expected);
            let expected = expected.repeat(heads.num_attention_heads);
            let outcome = if *got == expected { Ok(()) } else { compare::bits(got, &expected, dim) };
            rig.note(|| format!("value {i} of {dim}"), outcome);
        }
        // Keys too large for scores to distinguish are left out.
        let ones = Rng::of(&[52]).normals(dim, 1.0);
        let seen = telling.iter().filter(|key| key.iter().all(|value| value.abs() < 1e3));
        let pairs: Vec<Vec<Vec<f32>>> = seen.map(|key| vec![row(&zeros, &ones), row(key, &zeros)]).collect();
        let got = kv_rows::attend(&mut rig.b, heads, BOTH, &pairs)?;
        let expected = kv_rows::attend(&mut Reference::new(), heads, BOTH, &pairs)?;
        let allowed = tolerance::attention(rig.precision, dim, 2, 40.0);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            rig.note(|| format!("key {i} of {dim}"), compare::rms(got, expected, dim, allowed, 0.1));
        }
    }
    Ok(())
}

/// Heads of random magnitudes, from those that F16 scales cannot tell from 0 to the largest of f32, and heads whose
/// codes lie between two whole numbers.
fn random_heads(head_dim: usize, count: u64) -> Vec<Vec<f32>> {
    let head = |seed| {
        let mut rng = Rng::of(&[54, seed]);
        let exponent = rng.below(250) as f32 - 124.0;
        let magnitude = rng.normal().abs().max(0.1) * exponent.exp2();
        match seed % 4 {
            // Multiples of half a step: many ties.
            0 => (0..head_dim).map(|_| (rng.below(509) as f32 - 254.0) / 254.0 * magnitude).collect(),
            1 => (0..head_dim).map(|_| rng.normal() * 2e-7 * magnitude.clamp(0.01, 100.0)).collect(),
            2 => rng.normals(head_dim, 3.0),
            _ => (0..head_dim).map(|_| (rng.normal() * magnitude).clamp(f32::MIN, f32::MAX)).collect(),
        }
    };
    (0..count).map(head).collect()
}

/// The stored bytes of keys and values are those of `q8::round`, bit for bit, also of damaged ones.
pub fn stored_bytes<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    for dim in [32, 64, 96, 128] {
        let heads = heads(4, 2, dim);
        let mut all = [telling_heads(dim), random_heads(dim, 400)].concat();
        all.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|damage| {
            let mut head = Rng::of(&[55]).normals(dim, 1.0);
            head[dim - 3] = damage;
            head
        }));
        // Two key heads and two value heads a row.
        let rows: Vec<&[Vec<f32>]> = all.chunks_exact(4).collect();
        let spec = KvSpec {
            num_blocks: rows.len().div_ceil(16),
            num_key_value_heads: heads.num_key_value_heads,
            ..spec(BOTH, dim)
        };
        let mut kv = rig.b.kv(&spec)?;
        let slots: Vec<u32> = (0..rows.len() as u32).collect();
        let queries = vec![0.0; heads.q_size()];
        let qkv: Vec<f32> = rows.iter().flat_map(|row| [queries.clone(), row.concat()].concat()).collect();
        kv_rows::store(&mut rig.b, heads, (&mut kv, 0), &slots, &qkv)?;
        let encoding = rig.b.stored_encoding(Encoding::Q8_0);
        let stored = KvSpec { key_encodings: vec![encoding], value_encoding: encoding, ..spec };
        let blocks: Vec<u32> = (0..stored.num_blocks as u32).collect();
        let mut bytes = vec![0; blocks.len() * stored.block_bytes()];
        rig.b.read_blocks(&kv, &blocks, &mut bytes)?;
        let row_bytes = encoding.bytes(dim);
        for (position, row) in rows.iter().enumerate() {
            let block = &bytes[position / 16 * stored.block_bytes()..][..stored.block_bytes()];
            for (part, head) in stored.block_parts().zip(row.iter()) {
                let found = &block[part.bytes.start + position % 16 * row_bytes..][..row_bytes];
                let outcome = if is_rounded(encoding, found, head) { Ok(()) } else { Err(format!("{found:?}")) };
                rig.note(|| format!("{head:?}"), outcome);
            }
        }
    }
    Ok(())
}

/// Whether these bytes are those that a head is rounded to; for a backend that stores more than was asked for, what they
/// decode to.
fn is_rounded(encoding: Encoding, found: &[u8], head: &[f32]) -> bool {
    if encoding == Encoding::Q8_0 {
        let blocks = head.as_chunks().0.iter().map(q8::round);
        let bytes =
            blocks.flat_map(|(scale, codes)| scale.to_le_bytes().into_iter().chain(codes.map(|code| code as u8)));
        return bytes.eq(found.iter().copied());
    }
    let (mut values, mut expected) = (vec![0.0; head.len()], head.to_vec());
    encoding.decode_row(found, &mut values);
    q8::store_and_read(&mut expected);
    values.iter().zip(&expected).all(|(found, expected)| found == expected || found.is_nan() && expected.is_nan())
}

/// The heads of every published size: a prompt, a chunk and single tokens in one batch.
pub fn every_geometry<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    for (_, heads) in GEOMETRIES {
        rig.check(&Attention(scenario(heads, &[(0, 9), (40, 1), (0, 1), (15, 2)])))?;
        rig.check(&Attention(scenario(heads, &[(33, 1), (16, 1)])))?;
    }
    Ok(())
}

/// Sequences of unequal lengths in one step, in blocks of several sizes, with padding and beyond a span of positions.
pub fn ragged_batches<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    let sequences = [(0, 33), (700, 1), (0, 1), (47, 16), (12, 5), (255, 1), (256, 1), (0, 17), (31, 2)];
    for block_size in [16, 32, 48, 256] {
        for (pad_tokens, pad_seqs) in [(0, 0), (5, 3)] {
            let scenario = scenario(heads(6, 2, 64), &sequences);
            rig.check(&Attention(Scenario { block_size, pad_tokens, pad_seqs, ..scenario }))?;
        }
    }
    rig.check(&Attention(scenario(heads(5, 1, 128), &sequences)))
}

/// Keys with biases of a few hundred: coarse, but exactly as specified.
pub fn outliers<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    for heads in [heads(4, 2, 64), heads(7, 1, 128)] {
        let scenario = scenario(heads, &[(0, 40), (99, 1), (16, 9)]);
        rig.check(&Attention(Scenario { keys: Keys::Biased, ..scenario }))?;
    }
    Ok(())
}

/// Keys with more bits than the values, as in layers with large biases, and the other way round.
pub fn mixed_encodings<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    let (f32, f16, q8_0) = (Encoding::F32, Encoding::F16, Encoding::Q8_0);
    for encodings in [(f32, q8_0), (f16, q8_0), (q8_0, f16), (q8_0, f32), (f16, f32), (f32, f16)] {
        for heads in [heads(7, 1, 64), heads(4, 2, 128)] {
            let scenario = Scenario::new(heads, &[(0, 20), (300, 1), (15, 2)]);
            rig.check(&Attention(Scenario { kv_encodings: Some(encodings), ..scenario }))?;
        }
    }
    Ok(())
}

/// The position of blocks, and copying them there, changes no bit.
pub fn copied_blocks<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    for heads in [heads(14, 2, 64), heads(5, 1, 128)] {
        let of = |blocks| Attention(Scenario { blocks, ..scenario(heads, &[(0, 40), (99, 1), (250, 9)]) });
        let whole = rig.run(&of(Blocks::InOrder))?;
        rig.check_same_rows((&of(Blocks::Permuted), 0..50), (&whole, 0..50))?;
        rig.check_same_rows((&of(Blocks::Copied), 0..50), (&whole, 0..50))?;
        rig.check(&of(Blocks::Copied))?;
    }
    Ok(())
}

/// A prompt at once, in chunks and token by token, alone and among others: the same bits.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    for (heads, len) in [(heads(14, 2, 64), 150), (heads(5, 1, 128), 300)] {
        let of = |computed, tokens| Attention(scenario(heads, &[(computed, tokens)]));
        let whole = rig.run(&of(0, len))?;
        for chunk in [7, 16, 64, 100] {
            for computed in (0..len).step_by(chunk) {
                let tokens = chunk.min(len - computed);
                rig.check_same_rows((&of(computed, tokens), 0..tokens), (&whole, computed..computed + tokens))?;
            }
        }
        for computed in (0..len).step_by(13) {
            rig.check_same_rows((&of(computed, 1), 0..1), (&whole, computed..computed + 1))?;
        }
        among_others(rig, of(0, len).0)?;
    }
    Ok(())
}

/// `qkv_rope_store` in its own and in its composed form.
pub fn fused_store<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    for form in [Form::Own, Form::Composed] {
        for (_, heads) in GEOMETRIES {
            let scenario = scenario(heads, &[(0, 3), (20, 1), (15, 2)]);
            let op = QkvRopeStoreOp { scenario, hidden_size: 64, encoding: Encoding::Bf16, normed: false, form };
            rig.check(&op)?;
        }
        for (pad_tokens, hidden_size, normed) in [(0, 100, false), (6, 33, true)] {
            let scenario = Scenario { pad_tokens, ..scenario(heads(5, 1, 64), &[(0, 17), (33, 1), (15, 2)]) };
            rig.check(&QkvRopeStoreOp { scenario, hidden_size, encoding: Encoding::F32, normed, form })?;
        }
    }
    Ok(())
}

/// A non-finite key or value makes the result of every token that sees it non-finite, and changes nothing for other
/// sequences.
pub fn non_finite<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    let heads = heads(3, 1, 64);
    let dim = heads.head_dim;
    let row = |sequence: u64, position: u64| Rng::of(&[53, sequence, position]).normals(heads.qkv_size(), 1.0);
    let sequences: Vec<Vec<Vec<f32>>> = (0..2).map(|s| (0..20).map(|p| row(s, p)).collect()).collect();
    let clean = kv_rows::attend(&mut rig.b, heads, BOTH, &sequences)?;
    for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // A channel of the key, and one of the value: only its block is lost.
        for (channel, lost) in [(40, 0..dim), (dim + 40, 32..64)] {
            let mut damaged = sequences.clone();
            damaged[0][5][heads.q_size() + channel] = damage;
            let got = kv_rows::attend(&mut rig.b, heads, BOTH, &damaged)?;
            let finite =
                got[0].chunks_exact(dim).flat_map(|head| &head[lost.clone()]).filter(|v| v.is_finite()).count();
            let outcome = if finite == 0 { Ok(()) } else { Err(format!("{finite} finite results")) };
            let what = || format!("{damage} in channel {channel} of what is stored");
            rig.note(what, outcome);
            rig.note(|| format!("{}, the other sequence", what()), compare::bits(&got[1], &clean[1], dim));
        }
    }
    Ok(())
}
