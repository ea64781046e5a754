// {format}_matvec_t{1,4}: a matrix in blocks times a few tokens in f32 arithmetic: the product of Exact for any number of
// tokens.
//
// A warp takes a pair of rows; blocks with the same rows run side by side, so that these are read from memory once. Lane l takes the units of 32 columns l, l + 32, ...: a warp reads what 1024 columns have
// in each plane at a time. A sum has one order, whatever TOKENS is and wherever the token is in the batch: a lane's
// columns in sequence, then the tree of warp_sum.
#pragma once
#include "blocks.cuh"
#include "epilogue.cuh"
#include "reduce.cuh"

// The rows of the matrix that are a pair.
struct BlockRows {
    UnitPlace at[2];

    template <class Format>
    __device__ __forceinline__ static BlockRows of(Format, const Product& p, u32 pair) {
        const Bytes first = static_cast<Bytes>(p.w) + Format::TABLE;
        const PairRows row = matrix_rows<epilogue::any>(p, pair);
        BlockRows rows;
        rows.at[0] = UnitPlace{first + size_t(row.first) * p.stride, 0, p.cols / UNIT, p.group_units};
        rows.at[1] = UnitPlace{first + size_t(row.second) * p.stride, 0, p.cols / UNIT, p.group_units};
        return rows;
    }
};

// Four activations of a token, those that a matrix's columns from `col` on are multiplied with.
template <class Format>
DEVICE float4 four_of(const Product& p, const float* x, u32 col) {
    if (Format::ORDERED && p.column_order) {
        const u32* const order = p.column_order + col;
        return float4{x[order[0]], x[order[1]], x[order[2]], x[order[3]]};
    }
    return load_float4(x + col);
}

template <class Format, u32 TOKENS>
DEVICE void block_matvec(const Product& p) {
    const u32 pair = blockIdx.y * (MATVEC_THREADS / 32) + warp();
    if (pair >= epilogue::any::pairs(p)) {
        return;
    }
    BlockRows rows = BlockRows::of(Format(), p, pair);
    // Tokens beyond the last read the last one, and are dropped.
    const float* x[TOKENS];
#pragma unroll
    for (u32 t = 0; t < TOKENS; t++) {
        x[t] = p.x + size_t(smaller(blockIdx.x * TOKENS + t, p.tokens - 1)) * p.cols;
    }
    float sums[TOKENS][2] = {};
#pragma unroll 1
    for (u32 unit = lane(); unit < p.cols / UNIT; unit += 32) {
        typename Format::Raw raw[2];
        Unit of[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            rows.at[r].unit = unit;
            Format::load(raw[r], rows.at[r]);
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            Format::decode(of[r], raw[r], unit, static_cast<Bytes>(p.w));
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            float w[2][4];
            values_of<Format>(w[0], of[0], i);
            values_of<Format>(w[1], of[1], i);
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++) {
                const float4 four = four_of<Format>(p, x[t], UNIT * unit + 4 * i);
                const float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    sums[t][0] = fmaf(w[0][j], v[j], sums[t][0]);
                    sums[t][1] = fmaf(w[1][j], v[j], sums[t][1]);
                }
            }
        }
    }
    // Lane t ends token t.
    float first = 0.0f, second = 0.0f;
#pragma unroll
    for (u32 t = 0; t < TOKENS; t++) {
        const float sum0 = warp_sum(sums[t][0]), sum1 = warp_sum(sums[t][1]);
        first = lane() == t ? sum0 : first;
        second = lane() == t ? sum1 : second;
    }
    const u32 token = blockIdx.x * TOKENS + lane();
    if (lane() < TOKENS && token < p.tokens) {
        epilogue::any::emit(p, token, pair, first, second);
    }
}
