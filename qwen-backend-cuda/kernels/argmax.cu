// argmax: the index of each row's largest value. A block takes a row, a thread every 1024th chunk of it.
#include "kernel.cuh"

// Chunks that a thread loads at once.
#define CHUNKS 4
#define LARGEST_FINITE 3.40282347e38f
#define NONE 0xffffffffu

// The largest value so far. One that is not finite counts as an infinity at NONE, which no other exceeds.
struct Best {
    float value;
    u32 index;

    __device__ __forceinline__ void take(Best other) {
        if (other.value > value || (other.value == value && other.index < index)) {
            *this = other;
        }
    }

    __device__ __forceinline__ void take(float v, u32 i) {
        const bool finite = fabsf(v) <= LARGEST_FINITE;
        take(finite ? Best{v, i} : Best{as_float(0x7f800000), NONE});
    }
};

DEVICE Best best_of_warp(Best best) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        const float value = shuffle_xor(best.value, step);
        const u32 index = shuffle_xor(best.index, step);
        best.take(Best{value, index});
    }
    return best;
}

KERNEL(argmax, Argmax, ARGMAX_THREADS, 1) {
    SHARED(float, values, 32);
    SHARED(u32, indices, 32);
    const float* const row = p.x + size_t(blockIdx.x) * p.width;
    Best best = {as_float(0xff800000), NONE};
    // Rows that begin at a multiple of 16 bytes, in chunks; the remaining columns, and other rows, in single values.
    const u32 chunks = p.width % 4 == 0 ? p.valid / 4 : 0;
    for (u32 start = threadIdx.x; start < chunks; start += CHUNKS * ARGMAX_THREADS) {
        float4 loaded[CHUNKS];
#pragma unroll
        for (u32 i = 0; i < CHUNKS; i++) {
            if (start + i * ARGMAX_THREADS < chunks) {
                loaded[i] = load_float4(row + 4 * (start + i * ARGMAX_THREADS));
            }
        }
#pragma unroll
        for (u32 i = 0; i < CHUNKS; i++) {
            const u32 col = 4 * (start + i * ARGMAX_THREADS);
            if (col < 4 * chunks) {
                best.take(loaded[i].x, col);
                best.take(loaded[i].y, col + 1);
                best.take(loaded[i].z, col + 2);
                best.take(loaded[i].w, col + 3);
            }
        }
    }
    for (u32 col = 4 * chunks + threadIdx.x; col < p.valid; col += ARGMAX_THREADS) {
        best.take(row[col], col);
    }
    best = best_of_warp(best);
    if (lane() == 0) {
        values[warp()] = best.value;
        indices[warp()] = best.index;
    }
    barrier();
    if (warp() == 0) {
        best = best_of_warp(Best{values[lane()], indices[lane()]});
        if (lane() == 0) {
            p.out[blockIdx.x] = best.index;
        }
    }
}
