//! Whole blocks of the K/V store to the host and back.
//!
//! A head's part of a block is contiguous on the device, in each of its planes. Values are as on the host; the two halves
//! of keys are interleaved, since a word or two of them is a rotary pair. In Q8_0 scales and codes are apart.

use qwen_core::backend::BlockPart;
use qwen_core::numerics::encoding::q8;
use qwen_core::{Encoding, Result};

use crate::executor::WgpuBackend;
use crate::kv::Store;
use crate::runtime::gpu::Piece;

/// Copy blocks of all layers to `out`.
pub(crate) fn read_blocks(b: &mut WgpuBackend, store: &Store, blocks: &[u32], out: &mut [u8]) -> Result<()> {
    let op = "read_blocks";
    check(b, op, store, blocks, out.len())?;
    let (pieces, parts) = pieces(b, op, store, blocks)?;
    let mut stored = Vec::with_capacity(out.len());
    b.gpu.read_pieces(op, &pieces, |bytes| stored.extend_from_slice(bytes))?;
    let (mut from, mut to) = (stored.as_slice(), out);
    for part in &parts {
        let (bytes, rest) = from.split_at(stored_bytes(store, part));
        let (out, left) = to.split_at_mut(part.bytes.len());
        (from, to) = (rest, left);
        reorder(store, part, |host, device, len| {
            out[host..host + len].copy_from_slice(&bytes[device..device + len]);
        });
    }
    Ok(())
}

/// Copy `bytes` to blocks of all layers.
pub(crate) fn write_blocks(b: &mut WgpuBackend, store: &Store, blocks: &[u32], bytes: &[u8]) -> Result<()> {
    let op = "write_blocks";
    check(b, op, store, blocks, bytes.len())?;
    let (pieces, parts) = pieces(b, op, store, blocks)?;
    let (mut from, mut pieces, mut stored) = (bytes, pieces.iter(), Vec::new());
    for part in &parts {
        let (bytes, rest) = from.split_at(part.bytes.len());
        from = rest;
        stored.clear();
        stored.resize(stored_bytes(store, part), 0);
        reorder(store, part, |host, device, len| {
            stored[device..device + len].copy_from_slice(&bytes[host..host + len]);
        });
        let mut left = stored.as_slice();
        for piece in pieces.by_ref().take(store.planes(part.encoding).len()) {
            let (plane, rest) = left.split_at(piece.bytes as usize);
            left = rest;
            b.gpu.write(op, &piece.array, piece.at, plane)?;
        }
    }
    Ok(())
}

/// Submit what is queued before whole blocks are moved as `len` bytes.
fn check(b: &mut WgpuBackend, op: &str, store: &Store, blocks: &[u32], len: usize) -> Result<()> {
    store.spec.check_blocks(blocks, len).map_err(|reason| b.error(op, reason))?;
    b.host_access();
    b.gpu.flush(op)
}

/// Where the planes of blocks are, and what the blocks are, in the order of `KvSpec::block_parts`.
fn pieces(b: &WgpuBackend, op: &str, store: &Store, blocks: &[u32]) -> Result<(Vec<Piece>, Vec<BlockPart>)> {
    let (mut pieces, mut parts) = (Vec::new(), Vec::new());
    for block in blocks {
        for part in store.spec.block_parts() {
            let slab = store.layers[part.layer].iter().rfind(|slab| slab.first_head <= part.head);
            let slab = slab.ok_or_else(|| b.error(op, format!("no slab has head {}", part.head)))?;
            let array = if part.is_value { &slab.values } else { &slab.keys };
            let head = (part.head - slab.first_head) * store.head_words(part.encoding);
            pieces.extend(store.planes(part.encoding).iter().map(|plane| Piece {
                array: array.clone(),
                at: 4 * (head + plane.first_word + *block as usize * plane.block_words) as u64,
                bytes: 4 * plane.block_words as u64,
            }));
            parts.push(part);
        }
    }
    Ok((pieces, parts))
}

/// Bytes of a part on the device.
fn stored_bytes(store: &Store, part: &BlockPart) -> usize {
    store.planes(part.encoding).iter().map(|plane| 4 * plane.block_words).sum()
}

/// Call `run` with where bytes of a part are on the host and on the device, and how many.
fn reorder(store: &Store, part: &BlockPart, mut run: impl FnMut(usize, usize, usize)) {
    let dim = store.spec.head_dim;
    if part.encoding == Encoding::Q8_0 {
        // The plane of codes, and a number of scales per position that is even.
        let (blocks, scales) = (dim / q8::VALUES, store.spec.block_size * dim);
        for at in 0..part.bytes.len() / q8::BYTES {
            let (position, block) = (at / blocks, at % blocks);
            run(at * q8::BYTES, scales + 2 * (position * blocks.next_multiple_of(2) + block), 2);
            run(at * q8::BYTES + 2, at * q8::VALUES, q8::VALUES);
        }
        return;
    }
    if part.is_value {
        return run(0, 0, part.bytes.len());
    }
    let size = part.encoding.bytes(1);
    for at in (0..part.bytes.len() / size).step_by(dim) {
        for i in 0..dim / 2 {
            run((at + i) * size, (at + 2 * i) * size, size);
            run((at + dim / 2 + i) * size, (at + 2 * i + 1) * size, size);
        }
    }
}
