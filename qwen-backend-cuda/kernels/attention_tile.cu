// compute_80
// machine code: HMMA LDSM
//
// attention_tile: attention of prompts by tensor cores, FlashAttention's way.
//
//     out = sum_p 2^(score_p - m) values_p / sum_p 2^(score_p - m),   score_p = q . keys_p / sqrt(head_dim) / ln 2
//
// A block has 64 tokens of one sequence and one query head, 16 a warp; queries stay in registers. The block takes the
// positions that the tokens see in tiles of 64, two of them in shared memory: while it computes with one, the next is
// copied through the block table. The largest score m so far and the sums are kept per token, and scaled when m grows.
//
// Queries are split in two f16 parts, and so are keys that are stored as f32 (split.cuh), by a warp's lanes and in
// place. So scores are as exact as in f32. Probabilities are rounded to f16 times 2^14, which keeps those down to
// 2^-38; values are f16 as stored; all sums are f32. A NaN among the values of a tile reaches all of the tile's tokens,
// also those before it.
#include "attention_tiles.cuh"
#include "split.cuh"

#define TOKENS_OF_WARP 16
#define PROBABILITY_BITS 14.0f
#define LOG2_E 1.44269504f
#define MINUS_INFINITY as_float(0xff800000)

static_assert(ATTENTION_TILE == ATTENTION_TILE_THREADS / 32 * TOKENS_OF_WARP, "each warp has its tokens");

// 2^x within 2 ulp; results below the smallest normal number are 0.
DEVICE float exp2_fast(float x) {
#ifdef __CUDACC_RTC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// A warp's 16 queries as operands: both parts of each 16 channels.
template <u32 D>
struct Operands {
    u32 high[D / 16][4], low[D / 16][4];
    // The factors that turn the sums of products with rows g and g + 8 into scores.
    float to_score[2];

    __device__ __forceinline__ Operands(const Attention& p, const Queries& queries, u32 token) {
        const size_t width = (p.num_attention_heads + 2 * p.num_key_value_heads) * D;
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            const bool there = token + 8 * row < queries.tokens;
            const float* const from =
                p.qkv + (queries.first_row + token + 8 * row) * width + blockIdx.y * D + lane() % 4 * 2;
            float2 q[D / 8];
            float largest = 0.0f;
#pragma unroll
            for (u32 i = 0; i < D / 8; i++) {
                q[i] = there ? *reinterpret_cast<const float2*>(from + 8 * i) : float2{0.0f, 0.0f};
                largest = larger_magnitude(larger_magnitude(largest, q[i].x), q[i].y);
            }
            largest = fmaxf(largest, shuffle_xor(largest, 1));
            largest = fmaxf(largest, shuffle_xor(largest, 2));
            const PowerOfTwo scale = split_scale(largest);
            to_score[row] = scale.inverse * (p.scale * LOG2_E);
#pragma unroll
            for (u32 i = 0; i < D / 8; i++) {
                const SplitPair parts = split(q[i].x * scale.factor, q[i].y * scale.factor);
                high[i / 2][i % 2 * 2 + row] = parts.high;
                low[i / 2][i % 2 * 2 + row] = parts.low;
            }
        }
    }
};

// ---- Scores of a tile: sums[i] belong to the positions 8 i ...

// Keys in f16.
template <u32 D>
DEVICE void multiply_keys(F16, float (&sums)[POSITIONS / 8][4], const Operands<D>& q, SharedAddress keys,
                          const float*) {
    constexpr u32 ROW = D * 2;
    const u32 l = lane(), first = (l / 16 * 8 + l % 8) * ROW, turn = l / 8 % 2 ^ l % 8;
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
        for (u32 i = 0; i < POSITIONS / 16; i++) {
            u32 words[4];
            load_tiles(words, keys + (first + i * 16 * ROW + (2 * k ^ turn) * 16));
            mma(F16(), sums[2 * i], q.high[k], words[0], words[1]);
            mma(F16(), sums[2 * i + 1], q.high[k], words[2], words[3]);
            mma(F16(), sums[2 * i], q.low[k], words[0], words[1]);
            mma(F16(), sums[2 * i + 1], q.low[k], words[2], words[3]);
        }
    }
}

// Keys in two parts, the second after the first in each row; `inverses` undoes the scale of each position.
template <u32 D>
DEVICE void multiply_keys(F32, float (&sums)[POSITIONS / 8][4], const Operands<D>& q, SharedAddress keys,
                          const float* inverses) {
    constexpr u32 ROW = D * 4;
    const u32 l = lane(), first = (l / 16 * 8 + l % 8) * ROW, turn = l / 8 % 2 ^ l % 8;
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
        for (u32 i = 0; i < POSITIONS / 16; i++) {
            u32 high[4], low[4];
            const u32 at = first + i * 16 * ROW + (2 * k ^ turn) * 16;
            load_tiles(high, keys + at);
            load_tiles(low, keys + (at + D * 2));
            mma(F16(), sums[2 * i], q.high[k], high[0], high[1]);
            mma(F16(), sums[2 * i + 1], q.high[k], high[2], high[3]);
            mma(F16(), sums[2 * i], q.low[k], high[0], high[1]);
            mma(F16(), sums[2 * i + 1], q.low[k], high[2], high[3]);
            mma(F16(), sums[2 * i], q.high[k], low[0], low[1]);
            mma(F16(), sums[2 * i + 1], q.high[k], low[2], low[3]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < POSITIONS / 8; i++) {
        const float even = inverses[8 * i + lane() % 4 * 2], odd = inverses[8 * i + lane() % 4 * 2 + 1];
        sums[i][0] *= even;
        sums[i][1] *= odd;
        sums[i][2] *= even;
        sums[i][3] *= odd;
    }
}

// ---- Keys made ready for products, in place.

template <u32 D>
DEVICE void prepare_keys(F16, unsigned char*, float*) {}

// Replace a row of D floats by D first parts and D second ones. A lane takes 8 values in two pieces of 4.
template <u32 D>
DEVICE void prepare_keys(F32, unsigned char* keys, float* inverses) {
    constexpr u32 LANES = D / 8, ROWS_AT_ONCE = 32 / LANES, ROWS = POSITIONS / (ATTENTION_TILE_THREADS / 32);
    const u32 l = lane() % LANES;
#pragma unroll 1
    for (u32 i = 0; i < ROWS; i += ROWS_AT_ONCE) {
        const u32 row = warp() * ROWS + i + lane() / LANES;
        unsigned char* const at = keys + row * D * 4;
        float4 values[2];
        float largest = 0.0f;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            const float4 v = load_float4(reinterpret_cast<const float*>(at + ((l + j * LANES) ^ row % 8) * 16));
            values[j] = v;
            largest = larger_magnitude(larger_magnitude(largest, v.x), v.y);
            largest = larger_magnitude(larger_magnitude(largest, v.z), v.w);
        }
#pragma unroll
        for (u32 distance = 1; distance < LANES; distance *= 2) {
            largest = fmaxf(largest, shuffle_xor(largest, distance));
        }
        const PowerOfTwo scale = split_scale(largest);
        // The shuffles waited until all lanes had read the row; this barrier orders their memory accesses.
        warp_barrier();
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            const float4 v = values[j];
            const SplitPair first = split(v.x * scale.factor, v.y * scale.factor);
            const SplitPair second = split(v.z * scale.factor, v.w * scale.factor);
            const u32 quad = l + j * LANES, chunk = quad / 2;
            unsigned char* const half = at + quad % 2 * 8;
            *reinterpret_cast<uint2*>(half + (chunk ^ row % 8) * 16) = uint2{first.high, second.high};
            *reinterpret_cast<uint2*>(half + ((chunk + D / 8) ^ row % 8) * 16) = uint2{first.low, second.low};
        }
        if (l == 0) {
            inverses[row] = scale.inverse;
        }
    }
    barrier();
}

// ---- The sums over the values so far, for rows g and g + 8 of a warp.
template <u32 D>
struct Sums {
    float values[D / 8][4];
    // The largest sum of products, the exponent of 2 for a sum of 0, and the sum of this lane's probabilities.
    float largest[2], offset[2], total[2];

    __device__ __forceinline__ Sums() : values{}, total{} {
        largest[0] = largest[1] = offset[0] = offset[1] = MINUS_INFINITY;
    }

    // Turn sums of products into probabilities, in place; a larger m scales the sums so far.
    __device__ __forceinline__ void take_scores(float (&scores)[POSITIONS / 8][4], const float (&to_score)[2]) {
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            float now = largest[row];
#pragma unroll
            for (u32 i = 0; i < POSITIONS / 8; i++) {
                now = fmaxf(now, fmaxf(scores[i][2 * row], scores[i][2 * row + 1]));
            }
            now = fmaxf(now, shuffle_xor(now, 1));
            now = fmaxf(now, shuffle_xor(now, 2));
            if (now != largest[row]) {
                const float offset_now = PROBABILITY_BITS - now * to_score[row];
                // There are no sums to scale the first time.
                const float scale = largest[row] == MINUS_INFINITY ? 0.0f : exp2_fast(offset_now - offset[row]);
                largest[row] = now;
                offset[row] = offset_now;
                total[row] *= scale;
#pragma unroll
                for (u32 i = 0; i < D / 8; i++) {
                    values[i][2 * row] *= scale;
                    values[i][2 * row + 1] *= scale;
                }
            }
#pragma unroll
            for (u32 i = 0; i < POSITIONS / 8; i++) {
#pragma unroll
                for (u32 j = 2 * row; j < 2 * row + 2; j++) {
                    scores[i][j] = exp2_fast(fmaf(scores[i][j], to_score[row], offset[row]));
                    total[row] += scores[i][j];
                }
            }
        }
    }

    __device__ __forceinline__ void take_values(const float (&probabilities)[POSITIONS / 8][4], SharedAddress from) {
        constexpr u32 ROW = D * 2;
        const u32 l = lane(), first = l % 16 * ROW, turn = l / 16 ^ l % 8;
#pragma unroll
        for (u32 k = 0; k < POSITIONS / 16; k++) {
            const float(&p)[4] = probabilities[2 * k];
            const float(&q)[4] = probabilities[2 * k + 1];
            const u32 a[4] = {f16_pair(p[0], p[1]), f16_pair(p[2], p[3]), f16_pair(q[0], q[1]), f16_pair(q[2], q[3])};
#pragma unroll
            for (u32 i = 0; i < D / 16; i++) {
                u32 words[4];
                load_tiles_transposed(words, from + (first + k * 16 * ROW + (2 * i ^ turn) * 16));
                mma(F16(), values[2 * i], a, words[0], words[1]);
                mma(F16(), values[2 * i + 1], a, words[2], words[3]);
            }
        }
    }
};

// Mask positions after a token's own.
DEVICE void mask(float (&scores)[POSITIONS / 8][4], u32 first_position, u32 position_of_row) {
#pragma unroll
    for (u32 i = 0; i < POSITIONS / 8; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (first_position + 8 * i + lane() % 4 * 2 + j % 2 > position_of_row + j / 2 * 8) {
                scores[i][j] = MINUS_INFINITY;
            }
        }
    }
}

template <class Key, u32 D>
DEVICE void attention_tile(const Attention& p) {
    typedef Tiles<Key, D> Tiles;
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(float, inverses, POSITIONS);

    // The last tokens of a prompt see the most positions: their blocks begin first.
    Queries queries;
    if (!find_queries(p, gridDim.x - 1 - blockIdx.x, queries)) {
        return;
    }
    Tiles tiles(p, queries);
    tiles.copy(p, shared, 0);
    const u32 token = queries.first_token + warp() * TOKENS_OF_WARP + lane() / 4;
    const u32 position = queries.first_position + warp() * TOKENS_OF_WARP;
    const Operands<D> q(p, queries, token);
    Sums<D> sums;
    for (u32 first = 0; first < queries.visible; first += POSITIONS) {
        const u32 tile = first / POSITIONS;
        unsigned char* const stage = shared + tile % 2 * Tiles::BYTES;
        commit_copies();
        await_copies<0>();
        barrier();
        // All warps are done with the tile before this one.
        if (first + POSITIONS < queries.visible) {
            tiles.copy(p, shared + (tile + 1) % 2 * Tiles::BYTES, tile + 1);
        }
        prepare_keys<D>(Key(), stage, inverses);
        // A warp's last token.
        if (first > position + TOKENS_OF_WARP - 1) {
            continue;
        }
        float scores[POSITIONS / 8][4] = {};
        multiply_keys<D>(Key(), scores, q, shared_address(stage), inverses);
        if (first + POSITIONS - 1 > position) {
            mask(scores, first, position + lane() / 4);
        }
        sums.take_scores(scores, q.to_score);
        sums.take_values(scores, shared_address(stage + Tiles::KEY_BYTES));
    }

#pragma unroll
    for (u32 row = 0; row < 2; row++) {
        float total = sums.total[row];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        if (token + 8 * row >= queries.tokens) {
            continue;
        }
        const float inverse = 1.0f / total;
        const size_t out_row = queries.first_row + token + 8 * row;
        float* const out = p.out + (out_row * p.num_attention_heads + blockIdx.y) * D;
#pragma unroll
        for (u32 i = 0; i < D / 8; i++) {
            *reinterpret_cast<float2*>(out + 8 * i + lane() % 4 * 2) =
                float2{sums.values[i][2 * row] * inverse, sums.values[i][2 * row + 1] * inverse};
        }
    }
}

#define ATTENTION_TILE_OF(key, Key, d, blocks)                                          \
    KERNEL(attention_tile_k##key##_d##d, Attention, ATTENTION_TILE_THREADS, blocks) {   \
        attention_tile<Key, d>(p);                                                      \
    }
ATTENTION_TILE_OF(f16, F16, 64, 3)
ATTENTION_TILE_OF(f16, F16, 128, 2)
ATTENTION_TILE_OF(f32, F32, 64, 3)
ATTENTION_TILE_OF(f32, F32, 128, 2)
