// compute_80
// machine code: HMMA
//
// skinny: a matrix times a few tokens by tensor cores, as fast as the matrix can be read.
//
//     sum[row][token] = sum_k w[row][k] rounded[token][k]
//
// The matrix is the 16-row operand and tokens are the 8 columns of the other. Nothing is staged in shared memory: a dot
// product may take its columns in any order, so the two operands agree on one in which the 16 bytes that a lane reads
// at once are its fragments of two products. Of 32 columns lane t of a row's four reads 8t .. 8t + 7; the first product
// takes the first four of each lane, the second the others.
//
// A block has M tiles of 8 pairs; a pair's rows are g and g + 8 of a tile, so that one lane gets both sums. Its warps
// take steps of 64 columns in turn, a line of 128 bytes a row, and their sums are added in their order. All variants
// take the same steps in the same order: a token's bits do not depend on how many there are.
#include "mma.cuh"
#include "skinny.cuh"

#define STEP 64
#define WARPS_STEP (SKINNY_WARPS * STEP)

// The first columns of a lane's rows and tokens, and how many columns follow.
template <u32 N, u32 M>
struct Place {
    const u16* w[M][2];
    const u16* rounded;
    // Of each tile's token.
    u32 token[N];
    int left;

    __device__ __forceinline__ void advance(u32 columns) {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            w[m][0] += columns;
            w[m][1] += columns;
        }
        rounded += columns;
        left -= int(columns);
    }
};

// Add STEPS of a warp's steps, all loads of the matrix first. Columns beyond the last count as 0, unless WHOLE says
// that there are none.
template <class Half, u32 N, u32 M, u32 STEPS, bool WHOLE>
DEVICE void take_steps(float (&c)[N * M][4], const Place<N, M>& at) {
    // [step][tile][row g, g + 8][columns 0.., 32.. of the step]
    uint4 a[STEPS][M][2][2];
#pragma unroll
    for (u32 i = 0; i < STEPS * M * 4; i++) {
        const u32 step = i / (4 * M), m = i / 4 % M, row = i / 2 % 2, half = i % 2;
        const u32 column = step * WARPS_STEP + 32 * half;
        const bool there = WHOLE || int(column) < at.left;
        a[step][m][row][half] = there ? load16_once(at.w[m][row] + column) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (u32 i = 0; i < STEPS * 2 * N; i++) {
        const u32 step = i / (2 * N), half = i / N % 2, n = i % N;
        const u32 column = step * WARPS_STEP + 32 * half;
        const bool there = WHOLE || int(column) < at.left;
        const uint4 b = there ? load16(at.rounded + at.token[n] + column) : uint4{0, 0, 0, 0};
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            const uint4 low = a[step][m][0][half], high = a[step][m][1][half];
            mma(Half(), c[n * M + m], {low.x, high.x, low.y, high.y}, b.x, b.y);
            mma(Half(), c[n * M + m], {low.z, high.z, low.w, high.w}, b.z, b.w);
        }
    }
}

// N tiles of 8 tokens, M tiles of 8 pairs; a lane has 4 * M * STEPS loads of 16 bytes of the matrix under way.
template <class Half, class Epilogue, u32 N, u32 M, u32 STEPS>
DEVICE void skinny(const Product& p) {
    const u32 g = lane() / 4, t = lane() % 4;
    const u32 first_pair = blockIdx.x * (8 * M);
    Place<N, M> at;
#pragma unroll
    for (u32 m = 0; m < M; m++) {
        const PairRows row = matrix_rows<Epilogue>(p, first_pair + 8 * m + g);
        at.w[m][0] = static_cast<const u16*>(p.w) + size_t(row.first) * p.stride;
        at.w[m][1] = static_cast<const u16*>(p.w) + size_t(row.second) * p.stride;
    }
    // Tokens beyond the last are read as the last: their sums are dropped.
#pragma unroll
    for (u32 n = 0; n < N; n++) {
        at.token[n] = smaller(8 * n + g, p.tokens - 1) * p.stride;
    }
    at.rounded = static_cast<const u16*>(p.rounded);
    at.left = int(p.stride);
    at.advance(warp() * STEP + 8 * t);

    float c[N * M][4] = {};
    u32 from = warp() * STEP;
    for (; from + (STEPS - 1) * WARPS_STEP + STEP <= p.stride; from += STEPS * WARPS_STEP) {
        take_steps<Half, N, M, STEPS, true>(c, at);
        at.advance(STEPS * WARPS_STEP);
    }
    for (; from < p.stride; from += WARPS_STEP) {
        take_steps<Half, N, M, 1, false>(c, at);
        at.advance(WARPS_STEP);
    }
    add_warps<Half, Epilogue, N, M>(p, c, first_pair);
}

#define SKINNY(half, Half, n, m, steps, blocks, op)                        \
    KERNEL(skinny_##half##_n##n##_##op, Product, SKINNY_THREADS, blocks) { \
        skinny<Half, epilogue::op, n, m, steps>(p);                        \
    }
// A large matrix has rows enough for large blocks, which read the tokens less often.
#define FEW_ROWS(half, Half, n, m, steps, blocks)  \
    SKINNY(half, Half, n, m, steps, blocks, add)   \
    SKINNY(half, Half, n, m, steps, blocks, heads)
#define MANY_ROWS(half, Half, n, m, steps, blocks) \
    SKINNY(half, Half, n, m, steps, blocks, write) \
    SKINNY(half, Half, n, m, steps, blocks, silu)
#define EVERY_WIDTH(half, Half)                                 \
    FEW_ROWS(half, Half, 1, SKINNY_PAIRS / 8, 2, 3)             \
    MANY_ROWS(half, Half, 1, SKINNY_PAIRS / 8, 2, 3)            \
    FEW_ROWS(half, Half, 2, SKINNY_PAIRS / 8, 2, 2)             \
    MANY_ROWS(half, Half, 2, SKINNY_PAIRS / 8, 2, 2)            \
    FEW_ROWS(half, Half, 4, SKINNY_PAIRS_WIDE / 8, 1, 2)        \
    MANY_ROWS(half, Half, 4, SKINNY_PAIRS_MANY_ROWS_4 / 8, 1, 1) \
    FEW_ROWS(half, Half, 8, SKINNY_PAIRS_WIDE / 8, 2, 1)        \
    MANY_ROWS(half, Half, 8, SKINNY_PAIRS_MANY_ROWS_8 / 8, 1, 1)
EVERY_WIDTH(bf16, Bf16)
EVERY_WIDTH(f16, F16)
