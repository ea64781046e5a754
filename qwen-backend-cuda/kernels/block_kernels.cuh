// The kernels over a format of blocks: what a file of formats/ compiles.
//
// Each file makes two modules: one for every GPU, and one with tensor cores from compute capability 8.0 on. The
// compiler is run twice, and for the emulator, which has both, once.
#pragma once
#include "block_embed.cuh"
#include "block_matvec.cuh"

#define BLOCK_KERNELS(format, Format)                                          \
    KERNEL(format##_embed, Embed, BLOCK_EMBED_THREADS, 8) {                    \
        block_embed<Format>(p);                                                \
    }                                                                          \
    KERNEL(format##_matvec_t1, Product, MATVEC_THREADS, 4) {                   \
        block_matvec<Format, 1>(p);                                            \
    }                                                                          \
    KERNEL(format##_matvec_t4, Product, MATVEC_THREADS, 4) {                   \
        block_matvec<Format, 4>(p);                                            \
    }
