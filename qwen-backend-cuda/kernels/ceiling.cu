// The most that a GPU reads, copies and multiplies, to compare the other kernels with.
#include "kernel.cuh"

// 16-byte words that a thread loads at once.
#define WORDS 4

DEVICE size_t grid_threads() {
    return size_t(gridDim.x) * CEILING_THREADS;
}

DEVICE size_t grid_thread() {
    return size_t(blockIdx.x) * CEILING_THREADS + threadIdx.x;
}

// Call `use(i, word)` for each 16-byte word i of `from` that this thread reads.
template <class Use>
DEVICE void each_word(const Ceiling& p, Use& use) {
    const uint4* const from = static_cast<const uint4*>(p.from);
    const size_t words = p.bytes / 16, step = grid_threads();
    for (size_t start = grid_thread(); start < words; start += WORDS * step) {
        uint4 loaded[WORDS];
#pragma unroll
        for (u32 i = 0; i < WORDS; i++) {
            if (start + i * step < words) {
                loaded[i] = load16_once(from + start + i * step);
            }
        }
#pragma unroll
        for (u32 i = 0; i < WORDS; i++) {
            if (start + i * step < words) {
                use(start + i * step, loaded[i]);
            }
        }
    }
}

struct Sum {
    u32 sum;

    __device__ __forceinline__ void operator()(size_t, uint4 word) {
        sum += word.x + word.y + word.z + word.w;
    }
};

struct Copy {
    uint4* to;

    __device__ __forceinline__ void operator()(size_t i, uint4 word) {
        store16(to + i, word);
    }
};

KERNEL(ceiling_read, Ceiling, CEILING_THREADS, 8) {
    Sum use = {0};
    each_word(p, use);
    static_cast<u32*>(p.out)[grid_thread()] = use.sum;
}

KERNEL(ceiling_copy, Ceiling, CEILING_THREADS, 8) {
    Copy use = {static_cast<uint4*>(p.out)};
    each_word(p, use);
}

// Eight sums, four times a round: two operations each.
KERNEL(ceiling_fma_f32, Ceiling, CEILING_THREADS, 8) {
    const float factor = 0.5f, term = float(threadIdx.x);
    float sums[8] = {0.0f, 1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f, 7.0f};
#pragma unroll 1
    for (u32 round = 0; round < p.rounds; round++) {
#pragma unroll
        for (u32 i = 0; i < CEILING_FMA_FLOPS / 2; i++) {
            sums[i % 8] = fmaf(sums[i % 8], factor, term);
        }
    }
    float total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        total += sums[i];
    }
    static_cast<float*>(p.out)[grid_thread()] = total;
}
