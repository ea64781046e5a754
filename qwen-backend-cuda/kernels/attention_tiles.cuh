// The tokens of a block of attention_tile, and the tiles of keys and values that they see, which the block copies
// through the block table to shared memory.
//
// A row of a tile in shared memory consists of chunks of 16 bytes; chunk c of row r is stored at c ^ r % 8, so that the
// chunks c of eight rows are in different banks.
#pragma once
#include "mma.cuh"
#include "q8.cuh"
#include "sequences.cuh"

// Positions of a tile.
#define POSITIONS 64

// The block's tokens, and the rows of their sequence.
struct Queries {
    u32 sequence;
    // The sequence's first row in the batch, and its tokens in this step.
    u32 first_row, tokens;
    // The block's first token in the sequence, and its position.
    u32 first_token, first_position;
    // Positions that the block's last token sees.
    u32 visible;
};

// The tokens of sequence `seq` in this step.
DEVICE u32 tokens_of(const Attention& p, u32 seq) {
    const u32 first = first_row_of(p, seq), end = first_row_of(p, seq + 1);
    return end - smaller(first, end);
}

// Find the tokens of tile `tile`, in the order of the sequences; false if there are fewer tiles. A lane takes a
// sequence, 32 at a time.
DEVICE bool find_queries(const Attention& p, u32 tile, Queries& found) {
    for (u32 base = 0; base < p.num_seqs; base += 32) {
        const u32 s = base + lane();
        const u32 tiles = s < p.num_seqs ? div_up(tokens_of(p, s), ATTENTION_TILE) : 0;
        // Tiles up to and including this lane's sequence.
        u32 up_to = tiles;
#pragma unroll
        for (u32 distance = 1; distance < 32; distance *= 2) {
            const u32 other = shuffle(up_to, lane() - distance);
            up_to += lane() >= distance ? other : 0;
        }
        const u32 all = shuffle(up_to, 31);
        if (tile >= all) {
            tile -= all;
            continue;
        }
        u32 passed = up_to <= tile ? 1 : 0;
#pragma unroll
        for (u32 distance = 1; distance < 32; distance *= 2) {
            passed += shuffle_xor(passed, distance);
        }
        found.sequence = base + passed;
        found.first_row = first_row_of(p, found.sequence);
        found.tokens = tokens_of(p, found.sequence);
        found.first_token = (tile - shuffle(up_to - tiles, passed)) * ATTENTION_TILE;
        const u32 context = smaller(p.context_lens[found.sequence], max_positions(p));
        const u32 computed = context - smaller(found.tokens, context);
        found.first_position = computed + found.first_token;
        found.visible = smaller(computed + smaller(found.first_token + ATTENTION_TILE, found.tokens), context);
        return true;
    }
    return false;
}

// Four f32, or eight f16, of codes and their scale: a chunk of a row.
DEVICE uint4 decoded_chunk(F32, const signed char* codes, float scale) {
    float values[4];
    q8_decode(*reinterpret_cast<const u32*>(codes), scale, values);
    return uint4{as_u32(values[0]), as_u32(values[1]), as_u32(values[2]), as_u32(values[3])};
}

DEVICE uint4 decoded_chunk(F16, const signed char* codes, float scale) {
    const uint2 packed = *reinterpret_cast<const uint2*>(codes);
    float values[8];
    q8_decode(packed.x, scale, values);
    q8_decode(packed.y, scale, values + 4);
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        words[i] = f32_to_stored_f16(values[2 * i]) | u32(f32_to_stored_f16(values[2 * i + 1])) << 16;
    }
    return uint4{words[0], words[1], words[2], words[3]};
}

// Copies tiles of keys and values to shared memory: a thread takes the same chunk of every ROWS_AT_ONCE-th row.
template <class Key, u32 D>
struct Tiles {
    static constexpr u32 KEY_ROW = D * sizeof(typename Key::Stored);
    static constexpr u32 VALUE_ROW = D * 2;
    static constexpr u32 KEY_BYTES = POSITIONS * KEY_ROW;
    static constexpr u32 BYTES = KEY_BYTES + POSITIONS * VALUE_ROW;

    // The K/V head.
    u32 head;
    u32 sequence, visible;
    // On lanes 4 i + j: the slot of the next tile's position 16 j.
    u32 slots;

    __device__ __forceinline__ Tiles(const Attention& p, const Queries& queries) {
        head = blockIdx.y / (p.num_attention_heads / p.num_key_value_heads);
        sequence = queries.sequence;
        visible = queries.visible;
        look_up(p, 0);
    }

    // Blocks are multiples of 16 positions: one look-up finds the slots of 16. It is made a tile ahead, so that nothing
    // waits for it.
    __device__ __forceinline__ void look_up(const Attention& p, u32 tile) {
        const u32 position = tile * POSITIONS + lane() % 4 * 16;
        slots = position < visible ? slot_of(p, sequence, position, 16) : 0;
    }

    // Rows that no token sees are zeros, so that their product with a probability of 0 is 0, whatever the store holds.
    template <class Format>
    __device__ __forceinline__ void copy_rows(const Attention& p, unsigned char* to, const void* array, u32 encoding,
                                              u32 tile) const {
        constexpr u32 ROW_BYTES = D * sizeof(typename Format::Stored), CHUNKS = ROW_BYTES / 16;
        constexpr u32 ROWS_AT_ONCE = ATTENTION_TILE_THREADS / CHUNKS;
        static_assert(16 % ROWS_AT_ONCE == 0, "rows that are copied at once have one look-up");
        const u32 chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
        if (encoding == KV_Q8) {
            const signed char* const codes = static_cast<const signed char*>(array);
            const u16* const scales = q8_scales(array, p.num_key_value_heads, p.num_slots, D);
#pragma unroll 2
            for (u32 i = 0; i < POSITIONS / ROWS_AT_ONCE; i++) {
                const u32 row = i * ROWS_AT_ONCE + first;
                const u32 slot = shuffle(slots, i * ROWS_AT_ONCE / 16) + row % 16;
                const size_t at = (size_t(head) * p.num_slots + slot) * D + chunk * Format::WIDE;
                uint4 decoded = {0, 0, 0, 0};
                if (tile * POSITIONS + row < visible) {
                    decoded = decoded_chunk(Format(), codes + at, f16_to_f32(scales[at / Q8_VALUES]));
                }
                store16(to + row * ROW_BYTES + (chunk ^ row % 8) * 16, decoded);
            }
            return;
        }
        const SharedAddress to_rows = shared_address(to);
        const typename Format::Stored* const from =
            static_cast<const typename Format::Stored*>(array) + size_t(head) * p.num_slots * D + chunk * Format::WIDE;
        // Not all at once: the addresses would take the registers that queries and sums need.
#pragma unroll 4
        for (u32 i = 0; i < POSITIONS / ROWS_AT_ONCE; i++) {
            const u32 row = i * ROWS_AT_ONCE + first;
            const u32 slot = shuffle(slots, i * ROWS_AT_ONCE / 16) + row % 16;
            copy_async(to_rows + (row * ROW_BYTES + (chunk ^ row % 8) * 16), from + size_t(slot) * D,
                       tile * POSITIONS + row < visible);
        }
    }

    __device__ __forceinline__ void copy(const Attention& p, unsigned char* to, u32 tile) {
        copy_rows<Key>(p, to, p.keys, p.key_encoding, tile);
        copy_rows<F16>(p, to + KEY_BYTES, p.values, p.value_encoding, tile);
        look_up(p, tile + 1);
    }
};
