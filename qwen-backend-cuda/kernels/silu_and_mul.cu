// silu_and_mul: the MLP's gate. A thread takes a value.
#include "math.cuh"

#define SILU_THREADS 256

KERNEL(silu_and_mul, Rows, SILU_THREADS, 4) {
    const u32 col = blockIdx.x * SILU_THREADS + threadIdx.x;
    if (col < p.width) {
        const float* const gate_up = p.x + size_t(blockIdx.y) * 2 * p.width;
        p.out[size_t(blockIdx.y) * p.width + col] = silu(gate_up[col]) * gate_up[p.width + col];
    }
}
