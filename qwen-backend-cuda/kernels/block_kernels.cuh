// The kernels over a format of blocks: what a file of formats/ compiles.
//
// Each file makes two modules: one for every GPU, and one with tensor cores from compute capability 8.0 on. The compiler
// is run twice, and for the emulator, which has both, once.
//
// machine code of {format}_mma: HMMA
#pragma once
#include "block_dot.cuh"
#include "block_embed.cuh"
#include "block_matvec.cuh"
#include "block_mma.cuh"

#define FOR_EVERY_GPU(format, Format)                                          \
    KERNEL(format##_embed, Embed, BLOCK_EMBED_THREADS, 8) {                    \
        block_embed<Format>(p);                                                \
    }                                                                          \
    KERNEL(format##_matvec_t1, Product, MATVEC_THREADS, 4) {                   \
        block_matvec<Format, 1>(p);                                            \
    }                                                                          \
    KERNEL(format##_matvec_t4, Product, MATVEC_THREADS, 4) {                   \
        block_matvec<Format, 4>(p);                                            \
    }                                                                          \
    KERNEL(format##_dot_t1, Product, MATVEC_THREADS, 5) {                      \
        block_dot<Format, 1>(p);                                               \
    }                                                                          \
    KERNEL(format##_dot_t4, Product, MATVEC_THREADS, 3) {                      \
        block_dot<Format, 4>(p);                                               \
    }

#define WITH_TENSOR_CORES(format, Format)                                      \
    KERNEL(format##_mma_n2, Product, SKINNY_THREADS, 1) {                      \
        block_mma<Format, 2, BLOCK_SKINNY_PAIRS / 8>(p);                       \
    }                                                                          \
    KERNEL(format##_mma_n8, Product, SKINNY_THREADS, 1) {                      \
        block_mma<Format, 8, BLOCK_SKINNY_PAIRS / 8>(p);                       \
    }                                                                          \
    KERNEL(format##_mma_tile, Product, BLOCK_MMA_THREADS, 1) {                 \
        block_mma_tile<Format>(p);                                             \
    }

#if !defined(__CUDACC_RTC__)
#define BLOCK_KERNELS(format, Format) FOR_EVERY_GPU(format, Format) WITH_TENSOR_CORES(format, Format)
#elif __CUDA_ARCH__ >= 800
#define BLOCK_KERNELS(format, Format) WITH_TENSOR_CORES(format, Format)
#else
#define BLOCK_KERNELS(format, Format) FOR_EVERY_GPU(format, Format)
#endif
