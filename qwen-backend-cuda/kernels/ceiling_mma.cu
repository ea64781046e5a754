// compute_80
// machine code: HMMA
//
// ceiling_mma_bf16: the most that tensor cores multiply by mma, with all operands in registers. See Ceiling in
// params.cuh.
#include "mma.cuh"

// Products of a warp and round, and independent chains of them.
#define CEILING_PRODUCTS (CEILING_MMA_FLOPS / (2 * 16 * 8 * 16))
#define CHAINS 8

KERNEL(ceiling_mma_bf16, Ceiling, CEILING_THREADS, 2) {
    // 1, with a sign for each value: sums stay small, and no product is of zeros.
    const u32 one = 0x3f803f80, signs = threadIdx.x * 0x9e3779b9u;
    u32 a[4], b[2];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        a[i] = one | (signs << i & 0x80008000);
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        b[i] = one | (signs << (4 + i) & 0x80008000);
    }
    // Chains begin with different values: equal ones would be computed once.
    float c[CHAINS][4];
#pragma unroll
    for (u32 i = 0; i < 4 * CHAINS; i++) {
        c[i / 4][i % 4] = float(i);
    }
    for (u32 round = 0; round < p.rounds; round++) {
#pragma unroll
        for (u32 i = 0; i < CEILING_PRODUCTS; i++) {
            mma(Bf16(), c[i % CHAINS], a, b[0], b[1]);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < CHAINS; i++) {
        sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    }
    static_cast<float*>(p.out)[blockIdx.x * CEILING_THREADS + threadIdx.x] = sum;
}
