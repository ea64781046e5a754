// The sequences of a batch and their blocks, as the step's inputs describe them. The inputs are data that the host
// wrote; every index read here is bounded, so that no input, whatever it holds, makes a kernel read or write beyond an
// array. A row, position or block beyond its bound yields values without a meaning.
#pragma once
#include "kernel.cuh"

// Positions that a row of the block tables holds. The launching side checks that it is below 2^31.
DEVICE u32 max_positions(const Attention& p) {
    return p.max_blocks_per_seq * p.block_size;
}

// The first row of sequence `seq`; for num_seqs, the end of the last one.
DEVICE u32 first_row_of(const Attention& p, u32 seq) {
    return smaller(p.cu_seqlens_q[seq], p.num_tokens);
}

// The slot of a position below max_positions. A block beyond the store is taken for the store's last slots, of which
// `wanted` follow the slot.
DEVICE u32 slot_of(const Attention& p, u32 seq, u32 position, u32 wanted) {
    const u32 block = p.block_tables[size_t(seq) * p.max_blocks_per_seq + position / p.block_size];
    return smaller(block * p.block_size + position % p.block_size, p.num_slots - wanted);
}
