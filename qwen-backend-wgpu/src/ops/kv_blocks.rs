//! Whole blocks of the K/V store to the host and back.
//!
//! A head's part of a block is contiguous on the device. Its values are as on the host; the two halves of its keys are
//! interleaved, since a word or two of them is a rotary pair.

use qwen_core::Result;
use qwen_core::backend::BlockPart;

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
        let ((bytes, rest), (out, left)) = (from.split_at(part.bytes.len()), to.split_at_mut(part.bytes.len()));
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
    let (mut from, mut stored) = (bytes, Vec::new());
    for (piece, part) in pieces.iter().zip(&parts) {
        let (bytes, rest) = from.split_at(part.bytes.len());
        from = rest;
        stored.clear();
        stored.resize(bytes.len(), 0);
        reorder(store, part, |host, device, len| {
            stored[device..device + len].copy_from_slice(&bytes[host..host + len]);
        });
        b.gpu.write(op, &piece.array, piece.at, &stored)?;
    }
    Ok(())
}

/// Submit what is queued before whole blocks are moved as `len` bytes.
fn check(b: &mut WgpuBackend, op: &str, store: &Store, blocks: &[u32], len: usize) -> Result<()> {
    store.spec.check_blocks(blocks, len).map_err(|reason| b.error(op, reason))?;
    b.host_access();
    b.gpu.flush(op)
}

/// Where blocks are, and what they are, in the order of `KvSpec::block_parts`.
fn pieces(b: &WgpuBackend, op: &str, store: &Store, blocks: &[u32]) -> Result<(Vec<Piece>, Vec<BlockPart>)> {
    let spec = &store.spec;
    let parts = blocks.iter().flat_map(|block| spec.block_parts().map(move |part| (*block, part)));
    let piece = |(block, part): (u32, BlockPart)| {
        let slab = store.layers[part.layer].iter().rfind(|slab| slab.first_head <= part.head);
        let slab = slab.ok_or_else(|| b.error(op, format!("no slab has head {}", part.head)))?;
        let array = if part.is_value { &slab.values } else { &slab.keys };
        let (head, bytes) = (part.head - slab.first_head, part.bytes.len() as u64);
        let at = (head * spec.num_blocks + block as usize) as u64 * bytes;
        Ok((Piece { array: array.clone(), at, bytes }, part))
    };
    Ok(parts.map(piece).collect::<Result<Vec<_>>>()?.into_iter().unzip())
}

/// Call `run` with where bytes of a part are on the host and on the device, and how many.
fn reorder(store: &Store, part: &BlockPart, mut run: impl FnMut(usize, usize, usize)) {
    if part.is_value {
        return run(0, 0, part.bytes.len());
    }
    let (dim, size) = (store.spec.head_dim, part.encoding.bytes(1));
    for at in (0..part.bytes.len() / size).step_by(dim) {
        for i in 0..dim / 2 {
            run((at + i) * size, (at + 2 * i) * size, size);
            run((at + dim / 2 + i) * size, (at + 2 * i + 1) * size, size);
        }
    }
}
