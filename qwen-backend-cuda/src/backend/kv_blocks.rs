//! Whole blocks of the K/V store to the host and back. A head's part of a block is contiguous in each of its planes, of
//! which there are two in Q8_0, whose scales and codes are next to each other on the host.

use qwen_core::backend::BlockPart;
use qwen_core::numerics::encoding::q8;
use qwen_core::{Encoding, Result};

use super::CudaBackend;
use crate::gpu::Piece;
use crate::kv::Store;

impl CudaBackend {
    pub(super) fn copy_out(&mut self, store: &Store, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        let op = "read_blocks";
        self.check_blocks(op, store, blocks, out.len())?;
        let mut pieces = Vec::new();
        for &block in blocks {
            store.spec.block_parts().for_each(|part| pieces.extend(store.pieces(block, &part)));
        }
        let mut at = 0;
        self.gpu.read_pieces(op, &pieces, |bytes| {
            if let Some(out) = out.get_mut(at..at + bytes.len()) {
                out.copy_from_slice(bytes);
            }
            at += bytes.len();
        })?;
        for block in out.chunks_exact_mut(store.spec.block_bytes().max(1)) {
            for part in store.spec.block_parts().filter(|part| part.encoding == Encoding::Q8_0) {
                let out = &mut block[part.bytes];
                let planes = out.to_vec();
                let (codes, scales) = planes.split_at(out.len() / q8::BYTES * q8::VALUES);
                let (codes, scales) = (codes.as_chunks::<{ q8::VALUES }>().0, scales.as_chunks::<SCALE>().0);
                for ((out, codes), scale) in out.as_chunks_mut::<{ q8::BYTES }>().0.iter_mut().zip(codes).zip(scales) {
                    out[..SCALE].copy_from_slice(scale);
                    out[SCALE..].copy_from_slice(codes);
                }
            }
        }
        Ok(())
    }

    pub(super) fn copy_in(&mut self, store: &Store, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        let op = "write_blocks";
        self.check_blocks(op, store, blocks, bytes.len())?;
        for (&block, bytes) in blocks.iter().zip(bytes.chunks_exact(store.spec.block_bytes().max(1))) {
            for part in store.spec.block_parts() {
                let bytes = &bytes[part.bytes.clone()];
                let planes = (part.encoding == Encoding::Q8_0).then(|| {
                    let stored = bytes.as_chunks::<{ q8::BYTES }>().0;
                    let codes = stored.iter().flat_map(|block| &block[SCALE..]);
                    codes.chain(stored.iter().flat_map(|block| &block[..SCALE])).copied().collect::<Vec<u8>>()
                });
                let mut left = planes.as_deref().unwrap_or(bytes);
                for (array, at, len) in store.pieces(block, &part) {
                    let (piece, rest) = left.split_at(len);
                    self.gpu.write_bytes(op, &array, at, piece)?;
                    left = rest;
                }
            }
        }
        Ok(())
    }

    /// Queue what is recorded before whole blocks are moved as `len` bytes.
    fn check_blocks(&mut self, op: &str, store: &Store, blocks: &[u32], len: usize) -> Result<()> {
        store.spec.check_blocks(blocks, len).map_err(|reason| self.mismatch(op, reason))?;
        self.flush()
    }
}

/// Bytes of a scale.
const SCALE: usize = q8::BYTES - q8::VALUES;

impl Store {
    /// The pieces of a part of a block, plane by plane.
    fn pieces(&self, block: u32, part: &BlockPart) -> Vec<Piece> {
        let Some(layer) = self.layers.get(part.layer) else { return Vec::new() };
        let (array, of) = if part.is_value { (&layer.values, layer.value_type) } else { (&layer.keys, layer.key_type) };
        // Within the array, whose length is that of all heads.
        let at = part.head * self.spec.num_blocks + block as usize;
        self.planes(of).map(|(first, bytes)| (array.clone(), first + at * bytes, bytes)).collect()
    }
}
