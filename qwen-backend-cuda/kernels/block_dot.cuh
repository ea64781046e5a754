// {format}_dot_t{1,4}: a matrix in blocks times a few tokens rounded to bytes: decoding in Fast. Products of codes are
// sums of whole numbers, four at a time; every 32 columns they are scaled and added in f32.
//
// A warp takes two pairs of rows, which share the loads of the tokens. Lane l takes the units l, l + 32, ... of all four
// rows, 16 bytes of codes at a time where a unit has as many. Blocks with the same rows run side by side, so that these
// are read from memory once.
#pragma once
#include "blocks.cuh"
#include "bytes.cuh"
#include "epilogue.cuh"
#include "reduce.cuh"

#define DOT_PAIRS 2
static_assert(BLOCK_DOT_PAIRS == MATVEC_THREADS / 32 * DOT_PAIRS, "as params.cuh says");

// 32 activations of a token.
struct ByteUnit {
    u32 codes[8];
    float scale;
    // Sums of the codes of each 16 columns, or of all in the first.
    float sums[2];

    template <class Format>
    __device__ __forceinline__ void load(Format, const unsigned char* row, u32 unit, u32 units) {
        const uint4 first = load16(row + 32 * unit), second = load16(row + 32 * unit + 16);
        const u32 words[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
        scale = reinterpret_cast<const float*>(row + 32 * units)[unit];
        int counts[2] = {};
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            codes[i] = words[i];
            if (Format::OFFSET || Format::MIN) {
                counts[Format::HALVES ? i / 4 : 0] = dot4(words[i], 0x01010101, counts[Format::HALVES ? i / 4 : 0]);
            }
        }
        sums[0] = float(counts[0]);
        sums[1] = float(counts[1]);
    }
};

// The product of a unit of the matrix and of a token.
template <class Format>
DEVICE float dot_of(const Unit& w, const ByteUnit& x) {
    const u32 HALVES = Format::HALVES ? 2 : 1;
    float sum = 0.0f;
#pragma unroll
    for (u32 half = 0; half < HALVES; half++) {
        int dot = 0;
#pragma unroll
        for (u32 i = 0; i < 8 / HALVES; i++) {
            dot = dot4(w.codes[8 / HALVES * half + i], x.codes[8 / HALVES * half + i], dot);
        }
        // Both are whole numbers below 2^24: exact.
        const float shifted = Format::OFFSET ? fmaf(w.offset, x.sums[half], float(dot)) : float(dot);
        sum = half == 0 ? w.scale[0] * shifted : fmaf(w.scale[half], shifted, sum);
        sum = Format::MIN ? fmaf(-w.min[half], x.sums[half], sum) : sum;
    }
    return sum * x.scale;
}

template <class Format, u32 TOKENS>
DEVICE void block_dot(const Product& p) {
    const u32 ROWS = 2 * DOT_PAIRS;
    const u32 first_pair = (blockIdx.y * (MATVEC_THREADS / 32) + warp()) * DOT_PAIRS;
    if (first_pair >= epilogue::any::pairs(p)) {
        return;
    }
    const u32 units = p.cols / UNIT;
    Bytes rows[ROWS];
#pragma unroll
    for (u32 i = 0; i < DOT_PAIRS; i++) {
        const PairRows row = matrix_rows<epilogue::any>(p, first_pair + i);
        rows[2 * i] = static_cast<Bytes>(p.w) + Format::TABLE + size_t(row.first) * p.stride;
        rows[2 * i + 1] = static_cast<Bytes>(p.w) + Format::TABLE + size_t(row.second) * p.stride;
    }
    // Tokens beyond the last read the last one, and are dropped.
    const unsigned char* x[TOKENS];
#pragma unroll
    for (u32 t = 0; t < TOKENS; t++) {
        const u32 token = smaller(blockIdx.x * TOKENS + t, p.tokens - 1);
        x[t] = static_cast<const unsigned char*>(p.rounded) + size_t(token) * byte_row(units);
    }
    float sums[TOKENS][ROWS] = {};
#pragma unroll 1
    for (u32 unit = lane(); unit < units; unit += 32) {
        typename Format::Raw raw[ROWS];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            Format::load(raw[r], UnitPlace{rows[r], unit, units, p.group_units});
        }
        ByteUnit tokens[TOKENS];
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) {
            tokens[t].load(Format(), x[t], unit, units);
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            Unit w;
            Format::decode(w, raw[r], unit, static_cast<Bytes>(p.w));
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++) {
                sums[t][r] += dot_of<Format>(w, tokens[t]);
            }
        }
    }
    // Lane TOKENS i + t ends token t of pair i.
    float first = 0.0f, second = 0.0f;
#pragma unroll
    for (u32 i = 0; i < DOT_PAIRS; i++) {
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) {
            const float sum0 = warp_sum(sums[t][2 * i]), sum1 = warp_sum(sums[t][2 * i + 1]);
            first = lane() == TOKENS * i + t ? sum0 : first;
            second = lane() == TOKENS * i + t ? sum1 : second;
        }
    }
    const u32 token = blockIdx.x * TOKENS + lane() % TOKENS, pair = first_pair + lane() / TOKENS;
    if (lane() < TOKENS * DOT_PAIRS && token < p.tokens && pair < epilogue::any::pairs(p)) {
        epilogue::any::emit(p, token, pair, first, second);
    }
}
