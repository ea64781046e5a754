// What a block of attention_tile works on: which tokens are its own, and the tiles of keys and values that they see,
// which it copies through the block table to shared memory.
//
// A row of a tile in shared memory is chunks of 16 bytes; chunk c of row r is at place c ^ r % 8, so that eight rows of
// one c are in different banks.
#pragma once
#include "mma.cuh"

// Positions of a tile.
#define POSITIONS 64

// The block's tokens, and where their sequence's are.
struct Queries {
    u32 sequence;
    // The sequence's first row in the batch, and its tokens in this step.
    u32 first_row, tokens;
    // The block's first token in the sequence, and its position.
    u32 first_token, first_position;
    // Positions that the block's last token sees.
    u32 visible;
};

// Those of tile `tile` of all; false where there are fewer. A lane a sequence, 32 at a time.
DEVICE bool find_queries(const Attention& p, u32 tile, Queries& found) {
    for (u32 base = 0; base < p.num_seqs; base += 32) {
        const u32 s = base + lane();
        const u32 tiles = s < p.num_seqs ? div_up(p.cu_seqlens_q[s + 1] - p.cu_seqlens_q[s], ATTENTION_TILE) : 0;
        // Tiles up to and with this lane's sequence.
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
        found.first_row = p.cu_seqlens_q[found.sequence];
        found.tokens = p.cu_seqlens_q[found.sequence + 1] - found.first_row;
        found.first_token = (tile - shuffle(up_to - tiles, passed)) * ATTENTION_TILE;
        const u32 computed = p.context_lens[found.sequence] - found.tokens;
        found.first_position = computed + found.first_token;
        found.visible = computed + smaller(found.first_token + ATTENTION_TILE, found.tokens);
        return true;
    }
    return false;
}

// Copies of tiles of keys and values to shared memory: a thread takes the same chunk of every so manieth row.
template <class Key, u32 D>
struct Tiles {
    static constexpr u32 KEY_ROW = D * sizeof(typename Key::Stored);
    static constexpr u32 VALUE_ROW = D * 2;
    static constexpr u32 KEY_BYTES = POSITIONS * KEY_ROW;
    static constexpr u32 BYTES = KEY_BYTES + POSITIONS * VALUE_ROW;

    const unsigned char* keys;
    const unsigned char* values;
    const u32* block_table;
    u32 block_size, visible;
    // On lanes 4 i + j: the slot of the next tile's position 16 j.
    u32 slots;

    __device__ __forceinline__ Tiles(const Attention& p, const Queries& queries) {
        const u32 head = blockIdx.y / (p.num_attention_heads / p.num_key_value_heads);
        keys = static_cast<const unsigned char*>(p.keys) + size_t(head) * p.num_slots * KEY_ROW;
        values = static_cast<const unsigned char*>(p.values) + size_t(head) * p.num_slots * VALUE_ROW;
        block_table = p.block_tables + size_t(queries.sequence) * p.max_blocks_per_seq;
        block_size = p.block_size;
        visible = queries.visible;
        look_up(0);
    }

    // Blocks are multiples of 16 positions: one look-up finds the slots of 16. Done a tile ahead, nothing waits for it.
    __device__ __forceinline__ void look_up(u32 tile) {
        const u32 position = tile * POSITIONS + lane() % 4 * 16;
        slots = 0;
        if (position < visible) {
            slots = block_table[position / block_size] * block_size + position % block_size;
        }
    }

    template <u32 ROW_BYTES>
    __device__ __forceinline__ void copy_rows(SharedAddress to, const unsigned char* from, u32 tile) const {
        constexpr u32 CHUNKS = ROW_BYTES / 16;
        constexpr u32 ROWS_AT_ONCE = ATTENTION_TILE_THREADS / CHUNKS;
        static_assert(16 % ROWS_AT_ONCE == 0, "rows that are copied at once have one look-up");
        const u32 chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
        // Not all at once: so many addresses would take the registers that queries and sums need.
#pragma unroll 4
        for (u32 i = 0; i < POSITIONS / ROWS_AT_ONCE; i++) {
            const u32 row = i * ROWS_AT_ONCE + first;
            const u32 slot = shuffle(slots, i * ROWS_AT_ONCE / 16) + row % 16;
            // Rows that nobody sees are zeros: a product with the probability 0 is 0 then, whatever the store holds.
            copy_async(to + (row * ROW_BYTES + (chunk ^ row % 8) * 16), from + size_t(slot) * ROW_BYTES + chunk * 16,
                       tile * POSITIONS + row < visible);
        }
    }

    __device__ __forceinline__ void copy(SharedAddress to, u32 tile) {
        copy_rows<KEY_ROW>(to, keys, tile);
        copy_rows<VALUE_ROW>(to + KEY_BYTES, values, tile);
        look_up(tile + 1);
    }
};
