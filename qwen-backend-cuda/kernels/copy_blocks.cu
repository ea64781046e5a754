// copy_blocks: whole blocks of the store over others, before a shared one is written to. A block of threads takes a
// pair in one head.
#include "kernel.cuh"

#define COPY_THREADS 128

KERNEL(copy_blocks, CopyBlocks, COPY_THREADS, 8) {
    const u32 from = p.pairs[2 * blockIdx.x], to = p.pairs[2 * blockIdx.x + 1];
    if (from >= p.num_blocks || to >= p.num_blocks) {
        return;
    }
    unsigned char* const head =
        static_cast<unsigned char*>(p.array) + p.first + size_t(blockIdx.y) * p.num_blocks * p.block_bytes;
    for (u32 at = 16 * threadIdx.x; at < p.block_bytes; at += 16 * COPY_THREADS) {
        store16(head + size_t(to) * p.block_bytes + at, load16(head + size_t(from) * p.block_bytes + at));
    }
}
