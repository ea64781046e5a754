// attention: causal, over the paged store, for rows of queries that share a K/V head, in f32 arithmetic.
//
// A block takes ATTENTION_ROWS rows (a row is a token's query head) through partitions of ATTENTION_PARTITION
// positions. D / 8 lanes read a position, 16 bytes of f16 each, so that a key or value is read in one piece. For the
// scores a lane has its eight channels of all rows' queries in registers, and lanes then exchange parts of sums until
// each has complete ones; for the values it has eight channels of all rows' results. Between the two, 16 lanes turn a
// row's scores into weights.
//
// Each sum has one order, whatever the row of the block, the place in the batch and the split: channels in eights and
// then a tree; the positions of a partition by position modulo what a block reads at once, then trees of those.
#include "attention_state.cuh"
#include "q8.cuh"

#define ROWS ATTENTION_ROWS
#define PARTITION ATTENTION_PARTITION
#define WARPS (ATTENTION_THREADS / 32)
// Lanes that reduce the scores of a row.
#define ROW_LANES (ATTENTION_THREADS / ROWS)

// Eight channels of a key or value at `from`, still packed.
template <class Format>
struct Eight {
    uint4 packed[8 / Format::WIDE];

    __device__ __forceinline__ void load(const Attention&, const void* array, size_t at) {
#pragma unroll
        for (u32 i = 0; i < 8 / Format::WIDE; i++) {
            packed[i] = load16_once(static_cast<const typename Format::Stored*>(array) + at + i * Format::WIDE);
        }
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < 8 / Format::WIDE; i++) {
            packed[i] = uint4{0, 0, 0, 0};
        }
    }

    __device__ __forceinline__ void decode(const Attention&, float (&values)[8]) const {
#pragma unroll
        for (u32 i = 0; i < 8 / Format::WIDE; i++) {
            Format::decode(packed[i], values + i * Format::WIDE);
        }
    }
};

// Keys, or values, as the parameters say. The branches are the same for a whole grid.
struct AnyKeys {
    DEVICE u32 encoding(const Attention& p) {
        return p.key_encoding;
    }
};
struct AnyValues {
    DEVICE u32 encoding(const Attention& p) {
        return p.value_encoding;
    }
};

template <class Any>
struct AnyEight {
    // The codes of Q8_0 are in the first one, their scale in the second.
    uint4 packed[2];

    __device__ __forceinline__ void load(const Attention& p, const void* array, size_t at) {
        const u32 encoding = Any::encoding(p);
        if (encoding == KV_Q8) {
            const uint2 codes = load8_once(static_cast<const signed char*>(array) + at);
            packed[0].x = codes.x, packed[0].y = codes.y;
            const u16* const scales = q8_scales(array, p.num_key_value_heads, p.num_slots, p.head_dim);
            packed[1].x = as_u32(f16_to_f32(scales[at / Q8_VALUES]));
        } else if (encoding == ENCODING_F16) {
            packed[0] = load16_once(static_cast<const u16*>(array) + at);
        } else {
            packed[0] = load16_once(static_cast<const float*>(array) + at);
            packed[1] = load16_once(static_cast<const float*>(array) + at + 4);
        }
    }

    __device__ __forceinline__ void clear() {
        packed[0] = packed[1] = uint4{0, 0, 0, 0};
    }

    __device__ __forceinline__ void decode(const Attention& p, float (&values)[8]) const {
        const u32 encoding = Any::encoding(p);
        if (encoding == KV_Q8) {
            q8_decode(packed[0].x, as_float(packed[1].x), values);
            q8_decode(packed[0].y, as_float(packed[1].x), values + 4);
        } else if (encoding == ENCODING_F16) {
            F16::decode(packed[0], values);
        } else {
            F32::decode(packed[0], values);
            F32::decode(packed[1], values + 4);
        }
    }
};

template <>
struct Eight<AnyKeys> : AnyEight<AnyKeys> {};
template <>
struct Eight<AnyValues> : AnyEight<AnyValues> {};

// One step of a sum over lanes, of 2 N rows of WIDTH values that each lane has a part of: the lane gives away one half
// of the rows and adds to the other half the rows of the lane across `step`. Afterwards the N rows are first in
// `values`.
template <u32 N, u32 WIDTH>
DEVICE void halve_rows(float (&values)[ROWS][WIDTH], u32 step) {
    const bool upper = lane() & step;
#pragma unroll
    for (u32 r = 0; r < N; r++) {
#pragma unroll
        for (u32 i = 0; i < WIDTH; i++) {
            const float kept = upper ? values[r + N][i] : values[r][i];
            const float given = upper ? values[r][i] : values[r + N][i];
            values[r][i] = kept + shuffle_xor(given, step);
        }
    }
}

// The shared memory of a block.
template <u32 D>
struct Block {
    float* queries;   // [ROWS][D], times the scale
    float* weights;   // [PARTITION][ROWS]: scores, then weights
    float* parts;     // [WARPS][ROWS][D]: weighted values
    u32* slots;       // [PARTITION]
};

// A row of a block: its token, its query head, its sequence, and how many positions of that it sees.
struct Row {
    u32 token, head, seq, visible;
};

DEVICE Row row_of(const Attention& p, u32 r) {
    const u32 heads_per_kv = p.num_attention_heads / p.num_key_value_heads;
    Row row;
    u32 h;
    bool exists;
    if (p.by_token) {
        const u32 tiles = div_up(heads_per_kv, ROWS);
        row.token = blockIdx.x / tiles;
        h = blockIdx.x % tiles * ROWS + r;
        exists = h < heads_per_kv;
    } else {
        row.token = (blockIdx.x * ROWS + r) / heads_per_kv;
        h = (blockIdx.x * ROWS + r) % heads_per_kv;
        exists = row.token < p.num_tokens;
    }
    row.head = blockIdx.y * heads_per_kv + h;
    row.seq = exists ? sequence_of(p, row.token) : p.num_seqs;
    row.visible = row.seq < p.num_seqs ? positions_seen(p, row.seq, row.token) : 0;
    return row;
}

// The channels and the position of a lane, among the positions that a block reads at once.
template <u32 D>
struct Place {
    static const u32 LANES = D / 8;
    static const u32 PER_WARP = 32 / LANES;
    // Positions that a block reads at once.
    static const u32 STEP = WARPS * PER_WARP;

    DEVICE u32 channel() {
        return lane() % LANES * 8;
    }
    DEVICE u32 position() {
        return warp() * PER_WARP + lane() / LANES;
    }
};

// How many positions' channels a lane has registers for.
template <class Format, u32 D>
struct Steps {
    static const u32 COUNT = Format::WIDE == 8 ? 4 : 2;
};
template <u32 D>
struct Steps<AnyKeys, D> {
    static const u32 COUNT = D < 256 ? 4 : 2;
};
template <u32 D>
struct Steps<AnyValues, D> : Steps<AnyKeys, D> {};

// Keys or values that a lane loads at once: its channels of one position of each of the next STEPS.
template <class Format, u32 D>
struct Round {
    static const u32 STEPS = Steps<Format, D>::COUNT;
    static const u32 POSITIONS = STEPS * Place<D>::STEP;
    Eight<Format> loaded[STEPS];

    // The position of a step.
    static __device__ __forceinline__ u32 position(u32 first, u32 step) {
        return first + step * Place<D>::STEP + Place<D>::position();
    }

    // Load from the position `first` on; zeros from `count` on.
    __device__ __forceinline__ void load(const Attention& p, const void* array, const u32* slots, u32 first, u32 count) {
        const u32 channel = Place<D>::channel();
#pragma unroll
        for (u32 i = 0; i < STEPS; i++) {
            loaded[i].clear();
            if (position(first, i) < count && channel < p.head_dim) {
                const size_t slot = size_t(blockIdx.y) * p.num_slots + slots[position(first, i)];
                loaded[i].load(p, array, slot * p.head_dim + channel);
            }
        }
    }
};

// Scores of `count` positions, for all rows.
template <class Key, u32 D>
DEVICE void score(const Attention& p, const Block<D>& block, u32 count) {
    const u32 LANES = Place<D>::LANES, channel = Place<D>::channel();
    float q[ROWS][8];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
        for (u32 i = 0; i < 8; i += 4) {
            const float4 v = load_float4(block.queries + r * D + channel + i);
            q[r][i] = v.x, q[r][i + 1] = v.y, q[r][i + 2] = v.z, q[r][i + 3] = v.w;
        }
    }
#pragma unroll 1
    for (u32 first = 0; first < count; first += Round<Key, D>::POSITIONS) {
        Round<Key, D> keys;
        keys.load(p, p.keys, block.slots, first, count);
#pragma unroll
        for (u32 d = 0; d < Round<Key, D>::STEPS; d++) {
            float k[8], sums[ROWS][1];
            keys.loaded[d].decode(p, k);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                sums[r][0] = q[r][0] * k[0];
#pragma unroll
                for (u32 i = 1; i < 8; i++) {
                    sums[r][0] = fmaf(q[r][i], k[i], sums[r][0]);
                }
            }
            // Sum over the lanes of the position: halve the rows while there are several, then add up the last one.
            u32 row = 0, rows = ROWS;
#pragma unroll
            for (u32 step = LANES / 2; step > 0; step /= 2) {
                if (rows == 8) {
                    halve_rows<4, 1>(sums, step);
                } else if (rows == 4) {
                    halve_rows<2, 1>(sums, step);
                } else if (rows == 2) {
                    halve_rows<1, 1>(sums, step);
                } else {
                    sums[0][0] += shuffle_xor(sums[0][0], step);
                    continue;
                }
                rows /= 2;
                row += lane() & step ? rows : 0;
            }
            const u32 position = Round<Key, D>::position(first, d);
            // Several lanes hold the same sum: the first one writes it.
            const bool writes = LANES <= ROWS || lane() % (LANES <= ROWS ? 1 : LANES / ROWS) == 0;
            if (position < count && writes) {
#pragma unroll
                for (u32 r = 0; r < rows; r++) {
                    block.weights[position * ROWS + row + r] = sums[r][0];
                }
            }
        }
    }
}

// Turn this thread's row's scores into weights, zero from `visible` on; the largest score and the total to each of the
// row's lanes.
DEVICE void weigh(float* weights, u32 first, u32 visible, float& largest, float& total) {
    const u32 row = threadIdx.x / ROW_LANES, first_position = threadIdx.x % ROW_LANES;
    float scores[PARTITION / ROW_LANES];
    largest = LOWEST;
#pragma unroll
    for (u32 i = 0; i < PARTITION / ROW_LANES; i++) {
        const u32 position = first_position + i * ROW_LANES;
        if (first + position < visible) {
            scores[i] = weights[position * ROWS + row];
            largest = fmaxf(largest, scores[i]);
        }
    }
#pragma unroll
    for (u32 step = ROW_LANES / 2; step > 0; step /= 2) {
        largest = fmaxf(largest, shuffle_xor(largest, step));
    }
    total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PARTITION / ROW_LANES; i++) {
        const u32 position = first_position + i * ROW_LANES;
        const float weight = first + position < visible ? exp_negative(scores[i] - largest) : 0.0f;
        weights[position * ROWS + row] = weight;
        total += weight;
    }
#pragma unroll
    for (u32 step = ROW_LANES / 2; step > 0; step /= 2) {
        total += shuffle_xor(total, step);
    }
}

// The weighted values of `count` positions, for all rows: each warp's part. `values` holds the first round.
template <class Value, u32 D>
DEVICE void weigh_values(const Attention& p, const Block<D>& block, u32 count, Round<Value, D>& values) {
    const u32 LANES = Place<D>::LANES, channel = Place<D>::channel();
    static_assert(PARTITION % Round<Value, D>::POSITIONS == 0, "a round stays within a partition");
    float sums[ROWS][8] = {};
#pragma unroll 1
    for (u32 first = 0; first < count; first += Round<Value, D>::POSITIONS) {
        if (first > 0) {
            values.load(p, p.values, block.slots, first, count);
        }
#pragma unroll
        for (u32 d = 0; d < Round<Value, D>::STEPS; d++) {
            // Weights beyond `count` are zeros.
            const u32 position = Round<Value, D>::position(first, d);
            float v[8];
            values.loaded[d].decode(p, v);
#pragma unroll
            for (u32 r = 0; r < ROWS; r += 4) {
                const float4 four = load_float4(block.weights + position * ROWS + r);
                const float weights[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    // A weight of zero adds nothing, even if the value is not finite.
                    if (weights[j] > 0.0f) {
#pragma unroll
                        for (u32 i = 0; i < 8; i++) {
                            sums[r + j][i] = fmaf(weights[j], v[i], sums[r + j][i]);
                        }
                    }
                }
            }
        }
    }
    // Sum over the positions of the warp: halve the rows once for each pair of positions.
    u32 row = 0, rows = ROWS;
#pragma unroll
    for (u32 step = 16; step >= LANES; step /= 2) {
        if (rows == 8) {
            halve_rows<4, 8>(sums, step);
        } else if (rows == 4) {
            halve_rows<2, 8>(sums, step);
        } else {
            halve_rows<1, 8>(sums, step);
        }
        rows /= 2;
        row += lane() & step ? rows : 0;
    }
#pragma unroll
    for (u32 r = 0; r < rows; r++) {
        float* const part = block.parts + (warp() * ROWS + row + r) * D + channel;
        store_float4(part, float4{sums[r][0], sums[r][1], sums[r][2], sums[r][3]});
        store_float4(part + 4, float4{sums[r][4], sums[r][5], sums[r][6], sums[r][7]});
    }
}

template <class Key, class Value, u32 D>
DEVICE void attention(const Attention& p) {
    SHARED(float, queries, ROWS * D);
    SHARED(float, weights, PARTITION * ROWS);
    SHARED(float, parts, WARPS * ROWS * D);
    SHARED(u32, slots, PARTITION);
    const Block<D> block = {queries, weights, parts, slots};
    // This thread's row, of which it has some scores and every ROW_LANES-th channel of the result.
    const Row row = row_of(p, threadIdx.x / ROW_LANES);
    const u32 row_lane = threadIdx.x % ROW_LANES;
    const u32 heads_per_kv = p.num_attention_heads / p.num_key_value_heads;
    u32 first_token = row.token, last_token = row.token;
    if (!p.by_token) {
        first_token = blockIdx.x * ROWS / heads_per_kv;
        last_token = smaller((blockIdx.x * ROWS + ROWS - 1) / heads_per_kv, p.num_tokens - 1);
    }
    const u32 first_seq = sequence_of(p, first_token);
    // A grid has blocks for the longest context: most of them have no partition of a short one.
    if (p.partials &&
        (first_seq >= p.num_seqs || blockIdx.z * PARTITION >= positions_seen(p, first_seq, first_token))) {
        return;
    }
    const u32 width = (p.num_attention_heads + 2 * p.num_key_value_heads) * p.head_dim;
    const float* const query = p.qkv + size_t(row.token) * width + row.head * p.head_dim;
#pragma unroll
    for (u32 i = 0; i < D / ROW_LANES; i++) {
        const u32 channel = row_lane + i * ROW_LANES;
        const bool exists = row.visible > 0 && channel < p.head_dim;
        queries[threadIdx.x / ROW_LANES * D + channel] = exists ? query[channel] * p.scale : 0.0f;
    }
    float attended[D / ROW_LANES] = {}, largest = LOWEST, total = 0.0f;

    // The rows may be of several sequences: one after the other, as far as its last row sees.
    for (u32 seq = first_seq; seq < p.num_seqs && p.cu_seqlens_q[seq] <= last_token; seq++) {
        const u32 end = positions_seen(p, seq, smaller(last_token, p.cu_seqlens_q[seq + 1] - 1));
        const u32 visible = row.seq == seq ? row.visible : 0;
        for (u32 partition = blockIdx.z; partition * PARTITION < end; partition += gridDim.z) {
            const u32 first = partition * PARTITION, count = smaller(PARTITION, end - first);
            if (threadIdx.x < count) {
                slots[threadIdx.x] = slot_of(p, seq, first + threadIdx.x, 1);
            }
            barrier();
            score<Key, D>(p, block, count);
            barrier();
            // Load the first values while the weights are computed.
            Round<Value, D> values;
            values.load(p, p.values, slots, 0, count);
            float partition_largest, partition_total;
            weigh(weights, first, visible, partition_largest, partition_total);
            barrier();
            weigh_values<Value, D>(p, block, count, values);
            barrier();
            // A row that sees nothing of the partition is not changed, to the bit.
            if (visible <= first) {
                continue;
            }
            const Share share = share_of(largest, partition_largest);
#pragma unroll
            for (u32 i = 0; i < D / ROW_LANES; i++) {
                const u32 at = threadIdx.x / ROW_LANES * D + row_lane + i * ROW_LANES;
                float sum = parts[at];
#pragma unroll
                for (u32 w = 1; w < WARPS; w++) {
                    sum += parts[w * ROWS * D + at];
                }
                attended[i] = p.partials ? sum : blend(attended[i], share, sum);
            }
            if (!p.partials) {
                largest = fmaxf(largest, partition_largest);
                total = blend(total, share, partition_total);
                continue;
            }
            float* const partial = partial_of(p, row.token, row.head, partition);
#pragma unroll
            for (u32 i = 0; i < D / ROW_LANES; i++) {
                const u32 channel = row_lane + i * ROW_LANES;
                if (channel < p.head_dim) {
                    partial[channel] = attended[i];
                }
            }
            if (row_lane == 0) {
                partial[p.head_dim] = partition_largest;
                partial[p.head_dim + 1] = partition_total;
            }
        }
    }
    if (p.partials || row.visible == 0) {
        return;
    }
    float* const out = p.out + (size_t(row.token) * p.num_attention_heads + row.head) * p.head_dim;
#pragma unroll
    for (u32 i = 0; i < D / ROW_LANES; i++) {
        const u32 channel = row_lane + i * ROW_LANES;
        if (channel < p.head_dim) {
            out[channel] = attended[i] / total;
        }
    }
}

#define ATTENTION(key, Key, value, Value, d)                                           \
    KERNEL(attention_k##key##_v##value##_d##d, Attention, ATTENTION_THREADS, 3) {      \
        attention<Key, Value, d>(p);                                                   \
    }

#define ATTENTION_ANY(d)                                            \
    KERNEL(attention_any_d##d, Attention, ATTENTION_THREADS, 3) {   \
        attention<AnyKeys, AnyValues, d>(p);                        \
    }

#define ATTENTION_HEADS(key, Key, value, Value) \
    ATTENTION(key, Key, value, Value, 32)       \
    ATTENTION(key, Key, value, Value, 64)       \
    ATTENTION(key, Key, value, Value, 128)      \
    ATTENTION(key, Key, value, Value, 256)

ATTENTION_HEADS(f32, F32, f32, F32)
ATTENTION_HEADS(f32, F32, f16, F16)
ATTENTION_HEADS(f16, F16, f16, F16)
ATTENTION_ANY(64)
ATTENTION_ANY(128)
ATTENTION_ANY(256)
