// matvec: a matrix times a few tokens in f32 arithmetic: decoding, where the time is that of reading the matrix once.
//
// A warp takes a pair of rows. Lane l has the chunks of 16 bytes l, l + 32, ...: a warp reads 512 bytes at a time, and
// a lane asks for several chunks of both rows before it uses the first. The activations, read by every warp, stay in
// the first cache. A sum has one order, whatever TOKENS is and wherever the token stands: a lane's columns in sequence,
// then the tree of warp_sum. There is no barrier: a warp without a pair leaves.
#include "epilogue.cuh"
#include "numbers.cuh"
#include "reduce.cuh"

// Chunks of each row that a lane has under way. More tokens have more arithmetic to hide them behind.
template <u32 TOKENS>
struct Depth {
    static const u32 CHUNKS = TOKENS <= 2 ? 4 : 2;
    // Whether registers hold the activations of all of them, loaded beside the matrix.
    static const bool AHEAD = TOKENS == 1;
};

// The rows of x for this block's tokens; those beyond the last read the last one, and are dropped.
template <u32 TOKENS>
struct Activations {
    const float* rows[TOKENS];

    __device__ __forceinline__ explicit Activations(const Product& p) {
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) {
            rows[t] = p.x + size_t(smaller(blockIdx.y * TOKENS + t, p.tokens - 1)) * p.cols;
        }
    }
};

// A chunk of a token's activations.
template <class Format>
struct Chunk {
    float4 values[Format::WIDE / 4];

    __device__ __forceinline__ void load(const float* from) {
#pragma unroll
        for (u32 i = 0; i < Format::WIDE / 4; i++) {
            values[i] = load_float4(from + 4 * i);
        }
    }

    __device__ __forceinline__ void add(const float* w0, const float* w1, float (&sums)[2]) const {
#pragma unroll
        for (u32 i = 0; i < Format::WIDE; i++) {
            const float4 four = values[i / 4];
            const float v[4] = {four.x, four.y, four.z, four.w};
            sums[0] = fmaf(w0[i], v[i % 4], sums[0]);
            sums[1] = fmaf(w1[i], v[i % 4], sums[1]);
        }
    }
};

// Add a lane's chunks from `start` on, as many as are under way at once. WHOLE: all of them are there, so that no
// branch keeps loads apart.
template <class Format, u32 TOKENS, bool WHOLE>
DEVICE void take_chunks(const typename Format::Stored* const (&w)[2], const Activations<TOKENS>& x, u32 start,
                        u32 chunks, float (&sums)[TOKENS][2]) {
    const u32 DEPTH = Depth<TOKENS>::CHUNKS, WIDE = Format::WIDE;
    const bool AHEAD = Depth<TOKENS>::AHEAD;
    uint4 packed[DEPTH][2];
    Chunk<Format> v[AHEAD ? DEPTH : 1];
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++) {
        if (WHOLE || start + 32 * d < chunks) {
            packed[d][0] = load16_once(w[0] + (start + 32 * d) * WIDE);
            packed[d][1] = load16_once(w[1] + (start + 32 * d) * WIDE);
        }
    }
#pragma unroll
    for (u32 d = 0; AHEAD && d < DEPTH; d++) {
        if (WHOLE || start + 32 * d < chunks) {
            v[d].load(x.rows[0] + (start + 32 * d) * WIDE);
        }
    }
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++) {
        if (WHOLE || start + 32 * d < chunks) {
            float w0[WIDE], w1[WIDE];
            Format::decode(packed[d][0], w0);
            Format::decode(packed[d][1], w1);
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++) {
                if (!AHEAD) {
                    v[0].load(x.rows[t] + (start + 32 * d) * WIDE);
                }
                v[AHEAD ? d : 0].add(w0, w1, sums[t]);
            }
        }
    }
}

// For columns that come in whole chunks.
template <class Format, u32 TOKENS>
DEVICE void sum_chunks(const Product& p, PairRows row, const Activations<TOKENS>& x, float (&sums)[TOKENS][2]) {
    const u32 AT_ONCE = 32 * Depth<TOKENS>::CHUNKS, chunks = p.cols / Format::WIDE;
    const typename Format::Stored* const first = static_cast<const typename Format::Stored*>(p.w);
    const typename Format::Stored* const w[2] = {first + size_t(row.first) * p.stride,
                                                 first + size_t(row.second) * p.stride};
    u32 start = lane();
    // As long as the last lane's are there. Of several tokens the branches order the loads: all of the matrix come before
    // those of activations.
#pragma unroll 1
    for (; Depth<TOKENS>::AHEAD && (start | 31) + AT_ONCE - 32 < chunks; start += AT_ONCE) {
        take_chunks<Format, TOKENS, true>(w, x, start, chunks, sums);
    }
#pragma unroll 1
    for (; start < chunks; start += AT_ONCE) {
        take_chunks<Format, TOKENS, false>(w, x, start, chunks, sums);
    }
}

// For any number of columns, one at a time.
template <class Format, u32 TOKENS>
DEVICE void sum_columns(const Product& p, PairRows row, const Activations<TOKENS>& x, float (&sums)[TOKENS][2]) {
    const typename Format::Stored* const w = static_cast<const typename Format::Stored*>(p.w);
#pragma unroll 1
    for (u32 col = lane(); col < p.cols; col += 32) {
        const float w0 = Format::decode(w[size_t(row.first) * p.stride + col]);
        const float w1 = Format::decode(w[size_t(row.second) * p.stride + col]);
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) {
            sums[t][0] = fmaf(w0, x.rows[t][col], sums[t][0]);
            sums[t][1] = fmaf(w1, x.rows[t][col], sums[t][1]);
        }
    }
}

template <class Format, u32 TOKENS, class Epilogue>
DEVICE void matvec(const Product& p) {
    const u32 pair = blockIdx.x * MATVEC_PAIRS + warp();
    if (pair >= Epilogue::pairs(p)) {
        return;
    }
    const PairRows row = matrix_rows<Epilogue>(p, pair);
    const Activations<TOKENS> x(p);
    float sums[TOKENS][2] = {};
    if (p.cols % Format::WIDE == 0) {
        sum_chunks<Format, TOKENS>(p, row, x, sums);
    } else {
        sum_columns<Format, TOKENS>(p, row, x, sums);
    }
    // Lane t ends token t.
    float first = 0.0f, second = 0.0f;
#pragma unroll
    for (u32 t = 0; t < TOKENS; t++) {
        const float sum0 = warp_sum(sums[t][0]), sum1 = warp_sum(sums[t][1]);
        first = lane() == t ? sum0 : first;
        second = lane() == t ? sum1 : second;
    }
    const u32 token = blockIdx.y * TOKENS + lane();
    if (lane() < TOKENS && token < p.tokens) {
        Epilogue::emit(p, token, pair, first, second);
    }
}

#define MATVEC(format, Format, tokens, ending, blocks)                                          \
    KERNEL(matvec_##format##_t##tokens##_##ending, Product, MATVEC_THREADS, blocks) {           \
        matvec<Format, tokens, epilogue::ending>(p);                                            \
    }

#define MATVEC_TOKENS(format, Format, ending)  \
    MATVEC(format, Format, 1, ending, 5)       \
    MATVEC(format, Format, 2, ending, 7)       \
    MATVEC(format, Format, 4, ending, 6)       \
    MATVEC(format, Format, 8, ending, 5)

#define MATVEC_ENDINGS(format, Format)         \
    MATVEC_TOKENS(format, Format, write)       \
    MATVEC_TOKENS(format, Format, add)         \
    MATVEC_TOKENS(format, Format, silu)        \
    MATVEC_TOKENS(format, Format, heads)

MATVEC_ENDINGS(f32, F32)
MATVEC_ENDINGS(bf16, Bf16)
MATVEC_ENDINGS(f16, F16)
