//! Whole blocks of the K/V store to the host and back: a head's part of a block is contiguous, so both are copies.

use qwen_core::Result;
use qwen_core::backend::BlockPart;

use super::CudaBackend;
use crate::gpu::Piece;
use crate::kv::Store;

impl CudaBackend {
    pub(super) fn copy_out(&mut self, store: &Store, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        let op = "read_blocks";
        self.check_blocks(op, store, blocks, out.len())?;
        let mut pieces = Vec::new();
        for &block in blocks {
            pieces.extend(store.pieces(block));
        }
        let mut at = 0;
        self.gpu.read_pieces(op, &pieces, |bytes| {
            if let Some(out) = out.get_mut(at..at + bytes.len()) {
                out.copy_from_slice(bytes);
            }
            at += bytes.len();
        })
    }

    pub(super) fn copy_in(&mut self, store: &Store, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        let op = "write_blocks";
        self.check_blocks(op, store, blocks, bytes.len())?;
        let mut left = bytes;
        for &block in blocks {
            for (array, at, len) in store.pieces(block) {
                let (piece, rest) = left.split_at(len);
                self.gpu.write_bytes(op, &array, at, piece)?;
                left = rest;
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

impl Store {
    /// The pieces of a block in the order of `KvSpec::block_parts`.
    fn pieces(&self, block: u32) -> Vec<Piece> {
        let spec = &self.spec;
        let piece = |part: BlockPart| {
            let layer = self.layers.get(part.layer)?;
            let array = if part.is_value { &layer.values } else { &layer.keys };
            // Within the array, whose length is that of all heads.
            let at = (part.head * spec.num_blocks + block as usize) * part.bytes.len();
            Some((array.clone(), at, part.bytes.len()))
        };
        spec.block_parts().filter_map(piece).collect()
    }
}
