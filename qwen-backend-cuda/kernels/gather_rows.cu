// gather_rows: the rows of x that `indices` names, zeros for an index at or beyond `x_rows`. A block takes a row.
#include "kernel.cuh"

#define GATHER_THREADS 256

KERNEL(gather_rows, Rows, GATHER_THREADS, 4) {
    const u32 index = p.indices[blockIdx.x];
    const bool exists = index < p.x_rows;
    const float* const from = p.x + size_t(exists ? index : 0) * p.width;
    float* const to = p.out + size_t(blockIdx.x) * p.width;
    for (u32 col = threadIdx.x; col < p.width; col += GATHER_THREADS) {
        to[col] = exists ? from[col] : 0.0f;
    }
}
