// gather_rows: the rows of x that `indices` names. A block takes a row.
#include "kernel.cuh"

#define GATHER_THREADS 256

KERNEL(gather_rows, Rows, GATHER_THREADS, 4) {
    const float* const from = p.x + size_t(p.indices[blockIdx.x]) * p.width;
    float* const to = p.out + size_t(blockIdx.x) * p.width;
    for (u32 col = threadIdx.x; col < p.width; col += GATHER_THREADS) {
        to[col] = from[col];
    }
}
