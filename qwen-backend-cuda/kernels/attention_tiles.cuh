// The tokens of a block of attention_tile, and the tiles of keys and values that they see, which the block copies
// through the block table to shared memory.
//
// A row of a tile in shared memory consists of chunks of 16 bytes; chunk c of row r is stored at c ^ r % 8, so that the
// chunks c of eight rows are in different banks.
#pragma once
#include "mma.cuh"
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

// Copies tiles of keys and values to shared memory: a thread takes the same chunk of every ROWS_AT_ONCE-th row.
template <class Key, u32 D>
struct Tiles {
    static constexpr u32 KEY_ROW = D * sizeof(typename Key::Stored);
    static constexpr u32 VALUE_ROW = D * 2;
    static constexpr u32 KEY_BYTES = POSITIONS * KEY_ROW;
    static constexpr u32 BYTES = KEY_BYTES + POSITIONS * VALUE_ROW;

    const unsigned char* keys;
    const unsigned char* values;
    u32 sequence, visible;
    // On lanes 4 i + j: the slot of the next tile's position 16 j.
    u32 slots;

    __device__ __forceinline__ Tiles(const Attention& p, const Queries& queries) {
        const u32 head = blockIdx.y / (p.num_attention_heads / p.num_key_value_heads);
        keys = static_cast<const unsigned char*>(p.keys) + size_t(head) * p.num_slots * KEY_ROW;
        values = static_cast<const unsigned char*>(p.values) + size_t(head) * p.num_slots * VALUE_ROW;
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

    template <u32 ROW_BYTES>
    __device__ __forceinline__ void copy_rows(SharedAddress to, const unsigned char* from, u32 tile) const {
        constexpr u32 CHUNKS = ROW_BYTES / 16;
        constexpr u32 ROWS_AT_ONCE = ATTENTION_TILE_THREADS / CHUNKS;
        static_assert(16 % ROWS_AT_ONCE == 0, "rows that are copied at once have one look-up");
        const u32 chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
        // Not all at once: the addresses would take the registers that queries and sums need.
#pragma unroll 4
        for (u32 i = 0; i < POSITIONS / ROWS_AT_ONCE; i++) {
            const u32 row = i * ROWS_AT_ONCE + first;
            const u32 slot = shuffle(slots, i * ROWS_AT_ONCE / 16) + row % 16;
            // Rows that no token sees are zeros, so that their product with a probability of 0 is 0, whatever the store
            // holds.
            copy_async(to + (row * ROW_BYTES + (chunk ^ row % 8) * 16), from + size_t(slot) * ROW_BYTES + chunk * 16,
                       tile * POSITIONS + row < visible);
        }
    }

    __device__ __forceinline__ void copy(const Attention& p, SharedAddress to, u32 tile) {
        copy_rows<KEY_ROW>(to, keys, tile);
        copy_rows<VALUE_ROW>(to + KEY_BYTES, values, tile);
        look_up(p, tile + 1);
    }
};
