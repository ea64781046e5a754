// add_rows: scale times the rows of x, added to the rows of out that `indices` names. A block takes a row; an index at or
// beyond `out_rows` adds nothing.
#include "kernel.cuh"

#define ADD_ROWS_THREADS 256

KERNEL(add_rows, AddRows, ADD_ROWS_THREADS, 4) {
    const u32 index = p.indices[blockIdx.x];
    if (index >= p.out_rows) {
        return;
    }
    const float* const from = p.x + size_t(blockIdx.x) * p.width;
    float* const to = p.out + size_t(index) * p.width;
    for (u32 col = threadIdx.x; col < p.width; col += ADD_ROWS_THREADS) {
        to[col] = fmaf(p.scale, from[col], to[col]);
    }
}
