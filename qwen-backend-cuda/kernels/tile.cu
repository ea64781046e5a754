// tile: a matrix times the tokens of a prompt in f32 arithmetic, for matrices and GPUs without tensor cores.
//
// A block makes TILE_TOKENS x TILE_PAIRS pairs. 32 columns at a time of x and of the matrix go to shared memory as f32,
// transposed so that a thread reads its four tokens and its four rows (two pairs) in 16 bytes each: two loads for
// sixteen multiplications. The next columns are loaded to registers meanwhile.
#include "epilogue.cuh"
#include "numbers.cuh"

#define TILE_ROWS (2 * TILE_PAIRS)
#define TILE_COLS 32
// From one column to the next in shared memory: a multiple of 16 bytes.
#define TILE_STEP 68

// 32 columns of 64 rows in the registers of a block: thread i has the row i % 64 of them, so that what it stores lies
// beside what its neighbours store.
template <class Format>
struct Strip {
    static const u32 WIDE = Format::WIDE;
    static const u32 LOADS = TILE_COLS / (4 * WIDE);
    float values[LOADS * WIDE];

    // The column of a load, from the first one of the strip.
    static __device__ __forceinline__ u32 column(u32 load) {
        return (4 * load + threadIdx.x / 64) * WIDE;
    }

    // Whole chunks of the matrix: its rows are padded with zeros to `stride`, a multiple of WIDE.
    __device__ __forceinline__ void load(const typename Format::Stored* row, u32 first, u32 stride) {
#pragma unroll
        for (u32 l = 0; l < LOADS; l++) {
            const u32 col = first + column(l);
            const uint4 packed = col < stride ? load16(row + col) : uint4{0, 0, 0, 0};
            Format::decode(packed, values + l * WIDE);
        }
    }

    __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
        for (u32 l = 0; l < LOADS; l++) {
#pragma unroll
            for (u32 i = 0; i < WIDE; i++) {
                tile[(column(l) + i) * TILE_STEP + threadIdx.x % 64] = values[l * WIDE + i];
            }
        }
    }
};

// Columns of x, which is not padded: beyond its last they are zeros.
DEVICE void load_activations(Strip<F32>& strip, const float* row, u32 first, u32 cols) {
    if (cols % 4 == 0) {
        strip.load(row, first, cols);
        return;
    }
#pragma unroll
    for (u32 l = 0; l < Strip<F32>::LOADS; l++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 col = first + Strip<F32>::column(l) + i;
            strip.values[4 * l + i] = col < cols ? row[col] : 0.0f;
        }
    }
}

template <class Format, class Epilogue>
DEVICE void tile(const Product& p) {
    SHARED(float, x_tile, TILE_COLS * TILE_STEP);
    SHARED(float, w_tile, TILE_COLS * TILE_STEP);
    const u32 first_pair = blockIdx.x * TILE_PAIRS, first_token = blockIdx.y * TILE_TOKENS;

    // What this thread fetches: a token, and a row of a pair.
    const u32 fetched = threadIdx.x % 64;
    const float* const x = p.x + size_t(smaller(first_token + fetched, p.tokens - 1)) * p.cols;
    const PairRows rows = matrix_rows<Epilogue>(p, first_pair + fetched / 2);
    const typename Format::Stored* const w =
        static_cast<const typename Format::Stored*>(p.w) + size_t(fetched % 2 ? rows.second : rows.first) * p.stride;
    // What it computes.
    const u32 my_row = 4 * (threadIdx.x % 16), my_token = 4 * (threadIdx.x / 16);

    Strip<F32> x_strip;
    Strip<Format> w_strip;
    load_activations(x_strip, x, 0, p.cols);
    w_strip.load(w, 0, p.stride);
    float sums[4][4] = {};
#pragma unroll 1
    for (u32 first = 0; first < p.cols; first += TILE_COLS) {
        x_strip.store(x_tile);
        w_strip.store(w_tile);
        barrier();
        if (first + TILE_COLS < p.cols) {
            load_activations(x_strip, x, first + TILE_COLS, p.cols);
            w_strip.load(w, first + TILE_COLS, p.stride);
        }
#pragma unroll 8
        for (u32 col = 0; col < TILE_COLS; col++) {
            const float4 v = load_float4(x_tile + col * TILE_STEP + my_token);
            const float4 m = load_float4(w_tile + col * TILE_STEP + my_row);
            const float tokens[4] = {v.x, v.y, v.z, v.w}, weights[4] = {m.x, m.y, m.z, m.w};
#pragma unroll
            for (u32 t = 0; t < 4; t++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) {
                    sums[t][r] = fmaf(tokens[t], weights[r], sums[t][r]);
                }
            }
        }
        barrier();
    }
#pragma unroll
    for (u32 t = 0; t < 4; t++) {
#pragma unroll
        for (u32 r = 0; r < 4; r += 2) {
            const u32 token = first_token + my_token + t, pair = first_pair + (my_row + r) / 2;
            if (token < p.tokens && pair < Epilogue::pairs(p)) {
                Epilogue::emit(p, token, pair, sums[t][r], sums[t][r + 1]);
            }
        }
    }
}

#define TILE(format, Format, ending)                                              \
    KERNEL(tile_##format##_##ending, Product, TILE_THREADS, 2) {                  \
        tile<Format, epilogue::ending>(p);                                        \
    }

#define TILE_ENDINGS(format, Format)   \
    TILE(format, Format, write)        \
    TILE(format, Format, add)          \
    TILE(format, Format, silu)         \
    TILE(format, Format, heads)

TILE_ENDINGS(f32, F32)
TILE_ENDINGS(bf16, Bf16)
TILE_ENDINGS(f16, F16)
