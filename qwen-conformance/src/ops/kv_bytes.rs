//! K/V blocks as bytes on the host: that they are what was stored, in the one layout of all backends, and that another
//! store attends to them with the same bits.

use super::kv_rows::{self, refusal};
use super::rope::heads;
use crate::compare;
use crate::random::Rng;
use crate::rig::Rig;
use qwen_core::Encoding;
use qwen_core::backend::{Backend, HeadLayout, KvSpec};
use qwen_core::error::Result;

const BLOCK: usize = 16;
const BLOCKS: usize = 4;
const LAYERS: usize = 2;

/// Rows of q|k|v for all slots of a layer.
fn rows(layout: HeadLayout, seed: u64) -> Vec<f32> {
    Rng::of(&[60, seed]).normals(BLOCKS * BLOCK * layout.qkv_size(), 1.0)
}

/// The attention of one query to each block of a layer: a value that changes with any of its bits.
fn look<B: Backend>(b: &mut B, layout: HeadLayout, kv: &B::Kv, layer: usize) -> Result<Vec<f32>> {
    let query = Rng::of(&[61]).normals(layout.qkv_size(), 0.5).repeat(BLOCKS);
    kv_rows::look(b, layout, (kv, layer), vec![BLOCK as u32; BLOCKS], &query)
}

/// How far a stored value may be from the one that was given, with the largest of its block.
fn allowed(encoding: Encoding, value: f32, largest: f32) -> f32 {
    match encoding {
        Encoding::F32 => 0.0,
        Encoding::F16 => value.abs() / 1024.0 + f32::EPSILON,
        _ => largest / 127.0,
    }
}

/// Blocks are read as they were stored, and written to another store of another backend they are the same there.
pub fn through_the_host<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let encoding = rig.precision.kv_encoding();
    let mut encodings = vec![[encoding, Encoding::F32]];
    if refusal(rig)?.is_none() {
        encodings.push([Encoding::Q8_0, Encoding::Q8_0]);
    }
    for layout in [heads(5, 1, 64), heads(4, 2, 32), heads(6, 3, 128)] {
        for [first, second] in &encodings {
            let spec = KvSpec {
                key_encodings: vec![*first, *second],
                value_encoding: *first,
                num_blocks: BLOCKS,
                block_size: BLOCK,
                num_key_value_heads: layout.num_key_value_heads,
                head_dim: layout.head_dim,
            };
            one_store(rig, layout, &spec)?;
        }
    }
    Ok(())
}

fn one_store<B: Backend>(rig: &mut Rig<'_, B>, layout: HeadLayout, spec: &KvSpec) -> Result<()> {
    let of = |what: &str| format!("{what} of {spec:?}");
    let mut kv = rig.b.kv(spec)?;
    let mut before = Vec::new();
    for layer in 0..LAYERS {
        let slots: Vec<u32> = (0..(BLOCKS * BLOCK) as u32).collect();
        kv_rows::store(&mut rig.b, layout, (&mut kv, layer), &slots, &rows(layout, layer as u64))?;
        before.push(look(&mut rig.b, layout, &kv, layer)?);
    }
    let key_encodings = spec.key_encodings.iter().map(|encoding| rig.b.stored_encoding(*encoding)).collect();
    let value_encoding = rig.b.stored_encoding(spec.value_encoding);
    let stored = KvSpec { key_encodings, value_encoding, ..spec.clone() };
    let (read, to) = ([2, 0], [1, 3]);
    let mut bytes = vec![0xa5; 2 * stored.block_bytes()];
    rig.b.read_blocks(&kv, &read, &mut bytes)?;
    for (block, bytes) in read.into_iter().zip(bytes.chunks_exact(stored.block_bytes())) {
        let outcome = is_what_was_stored(layout, &stored, spec, block as usize, bytes);
        rig.note(|| of(&format!("block {block}")), outcome);
    }
    // Nothing is left of what a call does not ask for, and of one that asks for too much.
    rig.b.read_blocks(&kv, &[], &mut [])?;
    rig.b.write_blocks(&mut kv, &[], &[])?;
    let mut refused = vec![rig.b.read_blocks(&kv, &[0], &mut bytes).is_err()];
    refused.push(rig.b.read_blocks(&kv, &[0, BLOCKS as u32], &mut bytes).is_err());
    refused.push(rig.b.write_blocks(&mut kv, &[u32::MAX, 0], &bytes).is_err());
    refused.push(rig.b.write_blocks(&mut kv, &[0, 1, 2], &bytes).is_err());
    let outcome = if refused == [true; 4] { Ok(()) } else { Err(format!("{refused:?}")) };
    rig.note(|| of("refusals"), outcome);
    let mut other = rig.another()?;
    let mut copy = other.kv(spec)?;
    other.write_blocks(&mut copy, &to, &bytes)?;
    let width = layout.q_size();
    let block = |index: u32| index as usize * width..(index as usize + 1) * width;
    for (layer, before) in before.iter().enumerate() {
        let (here, there) = (look(&mut rig.b, layout, &kv, layer)?, look(&mut other, layout, &copy, layer)?);
        rig.note(|| of(&format!("layer {layer} after it was read")), compare::bits(&here, before, width));
        for (from, to) in read.into_iter().zip(to) {
            let outcome = compare::bits(&there[block(to)], &before[block(from)], width);
            rig.note(|| of(&format!("layer {layer}, block {from} as block {to} of another store")), outcome);
        }
        for untouched in [0, 2] {
            let outcome = compare::bits(&there[block(untouched)], &vec![0.0; width], width);
            rig.note(|| of(&format!("layer {layer}, block {untouched} of another store")), outcome);
        }
    }
    let mut again = vec![0; bytes.len()];
    other.read_blocks(&copy, &to, &mut again)?;
    let outcome = if again == bytes { Ok(()) } else { Err("other bytes".into()) };
    rig.note(|| of("what was written, read again"), outcome);
    Ok(())
}

/// Compare the bytes of a block with the rows that were stored in it.
fn is_what_was_stored(
    layout: HeadLayout,
    stored: &KvSpec,
    asked: &KvSpec,
    block: usize,
    bytes: &[u8],
) -> std::result::Result<(), String> {
    let dim = layout.head_dim;
    let (all, mut parts) = ([rows(layout, 0), rows(layout, 1)], 0);
    for part in stored.block_parts() {
        let asked = if part.is_value { asked.value_encoding } else { asked.key_encodings[part.layer] };
        let mut found = vec![0.0; BLOCK * dim];
        part.encoding.decode_row(&bytes[part.bytes.clone()], &mut found);
        let first = layout.q_size() + if part.is_value { layout.kv_size() } else { 0 } + part.head * dim;
        for (position, found) in found.chunks_exact(dim).enumerate() {
            let row = (block * BLOCK + position) * layout.qkv_size() + first;
            let given = &all[part.layer][row..row + dim];
            let largest = given.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let far = |(given, found): &(&f32, &f32)| {
                let near = (*given - *found).abs() <= allowed(asked, **given, largest);
                !near
            };
            if let Some((given, found)) = given.iter().zip(found).find(far) {
                return Err(format!("{found} for {given} at position {position} of {part:?}"));
            }
        }
        parts += 1;
    }
    let expected = 2 * LAYERS * layout.num_key_value_heads;
    if parts == expected { Ok(()) } else { Err(format!("{parts} parts of {expected}")) }
}
