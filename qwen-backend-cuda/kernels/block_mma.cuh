// {format}_mma_n{2,8}, {format}_mma_tile: a matrix in blocks times tokens rounded to bf16, by tensor cores (compute
// capability 8.0 on). Blocks are decoded in registers, each value rounded to bf16 once.
//
// The matrix is the 16-row operand and tokens are the 8 columns of the other. A dot product may take its columns in any
// order: of a span of 128 columns, a unit for each of a row's four lanes, product i takes columns 4i .. 4i + 3 of every
// unit. So a lane decodes a whole unit, and reads of a token what it needs for two products in 16 bytes. A pair's rows
// are g and g + 8 of a tile, so that one lane gets both sums.
#pragma once
#include "blocks.cuh"
#include "mma.cuh"
#include "skinny.cuh"

// Columns of a span.
#define SPAN (4 * UNIT)

// Two values rounded to bf16, the first in the lower half of the word.
DEVICE u32 bf16_pair(float first, float second) {
#ifdef __CUDACC_RTC__
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
#else
    return f32_to_bf16(first) | u32(f32_to_bf16(second)) << 16;
#endif
}

// The rows g and g + 8 of M tiles of 8 pairs, from pair `first` on.
template <class Format, u32 M>
struct TileRows16 {
    Bytes rows[M][2];
    typename Format::Raw raw[M][2];

    __device__ __forceinline__ TileRows16(const Product& p, u32 first) {
        const Bytes start = static_cast<Bytes>(p.w) + Format::TABLE;
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            const PairRows row = matrix_rows<epilogue::any>(p, first + 8 * m + lane() / 4);
            rows[m][0] = start + size_t(row.first) * p.stride;
            rows[m][1] = start + size_t(row.second) * p.stride;
        }
    }

    // Begin to read this lane's units of span `span`; beyond the last one, the last one's.
    __device__ __forceinline__ void load(const Product& p, u32 span) {
        const u32 units = p.cols / UNIT, unit = smaller(4 * span + lane() % 4, units - 1);
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            Format::load(raw[m][0], UnitPlace{rows[m][0], unit, units, p.group_units});
            Format::load(raw[m][1], UnitPlace{rows[m][1], unit, units, p.group_units});
        }
    }

    // What was read. Units beyond the last are zeros.
    __device__ __forceinline__ void decode(const Product& p, u32 span, Unit (&to)[M][2]) const {
        const u32 units = p.cols / UNIT, unit = 4 * span + lane() % 4;
#pragma unroll
        for (u32 i = 0; i < 2 * M; i++) {
            Unit& of = to[i / 2][i % 2];
            Format::decode(of, raw[i / 2][i % 2], smaller(unit, units - 1), static_cast<Bytes>(p.w));
            if (unit >= units) {
                of.scale[0] = of.scale[1] = of.min[0] = of.min[1] = 0.0f;
            }
        }
    }
};

// The operand of product `i` of a span: words for rows g and g + 8, two columns each, and two columns later.
template <class Format>
DEVICE void operand(u32 (&a)[4], const Unit (&rows)[2], u32 i) {
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        float values[4];
        values_of<Format>(values, rows[r], i);
        a[r] = bf16_pair(values[0], values[1]);
        a[2 + r] = bf16_pair(values[2], values[3]);
    }
}

// ---- Up to 8 N tokens: the warps of a block divide the columns, and their sums are added in order.

template <class Format, u32 N, u32 M>
DEVICE void block_mma(const Product& p) {
    const u32 first_pair = blockIdx.x * (8 * M), g = lane() / 4, t = lane() % 4;
    TileRows16<Format, M> rows(p, first_pair);
    const u16* const rounded = static_cast<const u16*>(p.rounded);
    float c[N * M][4] = {};
    const u32 spans = div_up(p.cols, SPAN);
#pragma unroll 1
    for (u32 span = warp(); span < spans; span += SKINNY_WARPS) {
        rows.load(p, span);
        Unit units[M][2];
        rows.decode(p, span, units);
        const u32 col = SPAN * span + UNIT * t;
#pragma unroll
        for (u32 two = 0; two < 4; two++) {
            u32 a[M][2][4];
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                operand<Format>(a[m][0], units[m], 2 * two);
                operand<Format>(a[m][1], units[m], 2 * two + 1);
            }
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                if (8 * n >= p.tokens) {
                    continue;
                }
                const u32 token = smaller(8 * n + g, p.tokens - 1);
                const bool there = col < p.cols;
                const uint4 b = there ? load16(rounded + size_t(token) * p.cols + col + 8 * two) : uint4{0, 0, 0, 0};
#pragma unroll
                for (u32 m = 0; m < M; m++) {
                    mma(Bf16(), c[n * M + m], a[m][0], b.x, b.y);
                    mma(Bf16(), c[n * M + m], a[m][1], b.z, b.w);
                }
            }
        }
    }
    add_warps<Bf16, epilogue::any, N, M>(p, c, first_pair);
}

// ---- Prompts: a block has tiles of rows and 64 tokens, which asynchronous copies bring to shared memory, span by span
// through a ring, and all warps share.

#define TILE_STAGES 4
// Tiles of 8 tokens, and of 8 pairs of rows of a warp.
#define TILE_N (BLOCK_MMA_TOKENS / 8)
#define TILE_M 2
#define TILE_WARPS (BLOCK_MMA_THREADS / 32)
#define TILE_STAGE_BYTES (BLOCK_MMA_TOKENS * SPAN * 2)
static_assert(BLOCK_MMA_PAIRS == TILE_WARPS * TILE_M * 8, "as params.cuh says");
static_assert(BLOCK_MMA_SHARED == TILE_STAGES * TILE_STAGE_BYTES, "as params.cuh says");
static_assert(BLOCK_MMA_SHARED == TILE_WARPS * BLOCK_MMA_TOKENS * TILE_M * 8 * sizeof(float2), "sums fit the ring");

// Bytes from a stage's start to chunk `two` of 8 columns of unit `t` of a token: the four units of a product lie side
// by side, and those of the next token in the other banks.
DEVICE u32 token_place(u32 token, u32 t, u32 two) {
    return token * (2 * SPAN) + ((4 * two + t) ^ token % 2 * 4) * 16;
}

// Start to copy span `span` of the block's tokens to `stage`, zeros beyond the last token and column.
DEVICE void copy_span(const Product& p, SharedAddress stage, u32 span) {
    const u32 chunks = SPAN / 8;
#pragma unroll
    for (u32 i = 0; i < BLOCK_MMA_TOKENS * chunks / BLOCK_MMA_THREADS; i++) {
        const u32 at = i * BLOCK_MMA_THREADS + threadIdx.x, local = at / chunks, chunk = at % chunks;
        const u32 token = blockIdx.x * BLOCK_MMA_TOKENS + local, col = SPAN * span + 8 * chunk;
        const bool there = token < p.tokens && col < p.cols;
        const u16* const from = static_cast<const u16*>(p.rounded) + (there ? size_t(token) * p.cols + col : 0);
        copy_async(stage + token_place(local, chunk / 4, chunk % 4), from, there);
    }
}

template <class Format>
DEVICE void block_mma_tile(const Product& p) {
    DYNAMIC_SHARED(unsigned char, ring);
    const SharedAddress first_stage = shared_address(ring);
    const u32 first_pair = blockIdx.y * BLOCK_MMA_PAIRS + warp() * (8 * TILE_M), g = lane() / 4, t = lane() % 4;
    const u32 spans = div_up(p.cols, SPAN);
    // Copies that are not there make empty groups, so that groups can be counted on.
#pragma unroll
    for (u32 i = 0; i < TILE_STAGES - 1; i++) {
        if (i < spans) {
            copy_span(p, first_stage + i * TILE_STAGE_BYTES, i);
        }
        commit_copies();
    }
    TileRows16<Format, TILE_M> rows(p, first_pair);
    rows.load(p, 0);
    float c[TILE_N][TILE_M][4] = {};
#pragma unroll 1
    for (u32 span = 0; span < spans; span++) {
        Unit units[TILE_M][2];
        rows.decode(p, span, units);
        // The rows of the next span are read while this one is multiplied.
        rows.load(p, span + 1);
        await_copies<TILE_STAGES - 2>();
        barrier();
        // The stage before this one has been read by all: before this barrier.
        if (span + TILE_STAGES - 1 < spans) {
            copy_span(p, first_stage + (span + TILE_STAGES - 1) % TILE_STAGES * TILE_STAGE_BYTES, span + TILE_STAGES - 1);
        }
        commit_copies();
        const unsigned char* const stage = ring + span % TILE_STAGES * TILE_STAGE_BYTES;
#pragma unroll
        for (u32 two = 0; two < 4; two++) {
            u32 a[TILE_M][2][4];
#pragma unroll
            for (u32 m = 0; m < TILE_M; m++) {
                operand<Format>(a[m][0], units[m], 2 * two);
                operand<Format>(a[m][1], units[m], 2 * two + 1);
            }
#pragma unroll
            for (u32 n = 0; n < TILE_N; n++) {
                const uint4 b = load16(stage + token_place(8 * n + g, t, two));
#pragma unroll
                for (u32 m = 0; m < TILE_M; m++) {
                    mma(Bf16(), c[n][m], a[m][0], b.x, b.y);
                    mma(Bf16(), c[n][m], a[m][1], b.z, b.w);
                }
            }
        }
    }

    // The warp's part of the ring takes its sums, a token's pairs side by side, so that few threads' code ends them all.
    barrier();
    const u32 PAIRS = 8 * TILE_M;
    float2* const sums = reinterpret_cast<float2*>(ring) + warp() * (BLOCK_MMA_TOKENS * PAIRS);
#pragma unroll
    for (u32 n = 0; n < TILE_N; n++) {
#pragma unroll
        for (u32 m = 0; m < TILE_M; m++) {
            sums[(8 * n + 2 * t) * PAIRS + 8 * m + g] = float2{c[n][m][0], c[n][m][2]};
            sums[(8 * n + 2 * t + 1) * PAIRS + 8 * m + g] = float2{c[n][m][1], c[n][m][3]};
        }
    }
    warp_barrier();
    const u32 pair = first_pair + lane() % PAIRS;
#pragma unroll 1
    for (u32 local = lane() / PAIRS; local < BLOCK_MMA_TOKENS; local += 32 / PAIRS) {
        const u32 token = blockIdx.x * BLOCK_MMA_TOKENS + local;
        if (token < p.tokens && pair < epilogue::any::pairs(p)) {
            const float2 of = sums[local * PAIRS + lane() % PAIRS];
            epilogue::any::emit(p, token, pair, of.x, of.y);
        }
    }
}
