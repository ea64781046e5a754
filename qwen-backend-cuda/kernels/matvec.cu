// matvec: a matrix times a few tokens in f32 arithmetic: decoding, whose time is the reading of the matrix.
//
// A warp takes a pair of rows, or two pairs with several tokens, which would be read too often for one. Lane l takes
// the chunks of 16 bytes l, l + 32, ...: a warp reads 512 bytes at a time, and a lane loads several chunks of all rows
// before it uses the first. The activations, read by every warp, stay in the first cache. A sum has one order, whatever
// TOKENS is and wherever the token is in the batch: a lane's columns in sequence, then the tree of warp_sum. There is
// no barrier: a warp without a pair returns.
#include "epilogue.cuh"
#include "numbers.cuh"
#include "reduce.cuh"

// The part of the matrix that a warp takes.
template <u32 TOKENS>
struct Shape {
    static const u32 PAIRS = TOKENS <= 2 ? 1 : 2;
    static const u32 ROWS = 2 * PAIRS;
    // Chunks of each row that a lane loads at once.
    static const u32 CHUNKS = TOKENS <= 2 ? 4 : 2;
    // Whether registers hold the activations of all of them, loaded beside the matrix.
    static const bool AHEAD = TOKENS == 1;
};
static_assert(MATVEC_PAIRS == MATVEC_THREADS / 32 * Shape<1>::PAIRS, "as params.cuh says");
static_assert(MATVEC_PAIRS_WIDE == MATVEC_THREADS / 32 * Shape<4>::PAIRS, "as params.cuh says");

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

    template <u32 ROWS>
    __device__ __forceinline__ void add(const float (&w)[ROWS][Format::WIDE], float (&sums)[ROWS]) const {
#pragma unroll
        for (u32 i = 0; i < Format::WIDE; i++) {
            const float4 four = values[i / 4];
            const float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                sums[r] = fmaf(w[r][i], v[i % 4], sums[r]);
            }
        }
    }
};

// Add a lane's chunks from `start` on, as many as are under way at once. WHOLE: all of them are there, so that no
// branch keeps loads apart.
template <class Format, u32 TOKENS, bool WHOLE>
DEVICE void take_chunks(const typename Format::Stored* const (&rows)[Shape<TOKENS>::ROWS], const Activations<TOKENS>& x,
                        u32 start, u32 chunks, float (&sums)[TOKENS][Shape<TOKENS>::ROWS]) {
    const u32 ROWS = Shape<TOKENS>::ROWS, DEPTH = Shape<TOKENS>::CHUNKS, WIDE = Format::WIDE;
    const bool AHEAD = Shape<TOKENS>::AHEAD;
    uint4 packed[DEPTH][ROWS];
    Chunk<Format> v[AHEAD ? DEPTH : 1];
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++) {
        if (WHOLE || start + 32 * d < chunks) {
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                packed[d][r] = load16_once(rows[r] + (start + 32 * d) * WIDE);
            }
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
            float w[ROWS][WIDE];
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                Format::decode(packed[d][r], w[r]);
            }
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++) {
                if (!AHEAD) {
                    v[0].load(x.rows[t] + (start + 32 * d) * WIDE);
                }
                v[AHEAD ? d : 0].add(w, sums[t]);
            }
        }
    }
}

// For columns that come in whole chunks.
template <class Format, u32 TOKENS>
DEVICE void sum_chunks(const Product& p, const typename Format::Stored* const (&rows)[Shape<TOKENS>::ROWS],
                       const Activations<TOKENS>& x, float (&sums)[TOKENS][Shape<TOKENS>::ROWS]) {
    const u32 AT_ONCE = 32 * Shape<TOKENS>::CHUNKS, chunks = p.cols / Format::WIDE;
    u32 start = lane();
    // As long as the last lane's are there. Of several tokens the branches order the loads: all of the matrix come
    // before those of activations.
#pragma unroll 1
    for (; Shape<TOKENS>::AHEAD && (start | 31) + AT_ONCE - 32 < chunks; start += AT_ONCE) {
        take_chunks<Format, TOKENS, true>(rows, x, start, chunks, sums);
    }
#pragma unroll 1
    for (; start < chunks; start += AT_ONCE) {
        take_chunks<Format, TOKENS, false>(rows, x, start, chunks, sums);
    }
}

// For any number of columns, one at a time.
template <class Format, u32 TOKENS>
DEVICE void sum_columns(const Product& p, const typename Format::Stored* const (&rows)[Shape<TOKENS>::ROWS],
                        const Activations<TOKENS>& x, float (&sums)[TOKENS][Shape<TOKENS>::ROWS]) {
#pragma unroll 1
    for (u32 col = lane(); col < p.cols; col += 32) {
#pragma unroll
        for (u32 r = 0; r < Shape<TOKENS>::ROWS; r++) {
            const float w = Format::decode(rows[r][col]);
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++) {
                sums[t][r] = fmaf(w, x.rows[t][col], sums[t][r]);
            }
        }
    }
}

template <class Format, u32 TOKENS, class Epilogue>
DEVICE void matvec(const Product& p) {
    const u32 PAIRS = Shape<TOKENS>::PAIRS;
    const u32 first_pair = (blockIdx.x * (MATVEC_THREADS / 32) + warp()) * PAIRS;
    if (first_pair >= Epilogue::pairs(p)) {
        return;
    }
    const typename Format::Stored* rows[2 * PAIRS];
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        const PairRows row = matrix_rows<Epilogue>(p, first_pair + i);
        rows[2 * i] = static_cast<const typename Format::Stored*>(p.w) + size_t(row.first) * p.stride;
        rows[2 * i + 1] = static_cast<const typename Format::Stored*>(p.w) + size_t(row.second) * p.stride;
    }
    const Activations<TOKENS> x(p);
    float sums[TOKENS][2 * PAIRS] = {};
    if (p.cols % Format::WIDE == 0) {
        sum_chunks<Format, TOKENS>(p, rows, x, sums);
    } else {
        sum_columns<Format, TOKENS>(p, rows, x, sums);
    }
    // Lane TOKENS i + t ends token t of pair i.
    float first = 0.0f, second = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) {
            const float sum0 = warp_sum(sums[t][2 * i]), sum1 = warp_sum(sums[t][2 * i + 1]);
            first = lane() == TOKENS * i + t ? sum0 : first;
            second = lane() == TOKENS * i + t ? sum1 : second;
        }
    }
    const u32 token = blockIdx.y * TOKENS + lane() % TOKENS, pair = first_pair + lane() / TOKENS;
    if (lane() < TOKENS * PAIRS && token < p.tokens && pair < Epilogue::pairs(p)) {
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
    MATVEC(format, Format, 4, ending, 4)       \
    MATVEC(format, Format, 8, ending, 3)

#define MATVEC_ENDINGS(format, Format)         \
    MATVEC_TOKENS(format, Format, write)       \
    MATVEC_TOKENS(format, Format, add)         \
    MATVEC_TOKENS(format, Format, silu)        \
    MATVEC_TOKENS(format, Format, heads)

MATVEC_ENDINGS(f32, F32)
MATVEC_ENDINGS(bf16, Bf16)
MATVEC_ENDINGS(f16, F16)
