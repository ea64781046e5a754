// store_kv: the key and value heads of each token to its slot of the store. A block takes a token.
#include "store.cuh"

#define STORE_THREADS 128

// Heads in Q8_0 are whole blocks: then a warp has a block, and all of its lanes come here.
DEVICE void store_one(const Heads& p, void* array, u32 encoding, size_t at, float value) {
    if (encoding == KV_Q8) {
        store_q8(array, q8_scales(array, p.num_key_value_heads, p.num_slots, p.head_dim), at, value);
    } else {
        store_as(array, encoding, at, value);
    }
}

KERNEL(store_kv, Heads, STORE_THREADS, 8) {
    const u32 slot = p.slot_mapping[blockIdx.x];
    if (slot >= p.num_slots) {
        return;
    }
    const u32 width = (p.num_attention_heads + 2 * p.num_key_value_heads) * p.head_dim;
    const u32 stored = p.num_key_value_heads * p.head_dim;
    const float* const keys = p.qkv + size_t(blockIdx.x) * width + p.num_attention_heads * p.head_dim;
    for (u32 i = threadIdx.x; i < stored; i += STORE_THREADS) {
        const size_t at = slot_start(i / p.head_dim, slot, p.num_slots, p.head_dim) + i % p.head_dim;
        store_one(p, p.keys, p.key_encoding, at, keys[i]);
        store_one(p, p.values, p.value_encoding, at, keys[stored + i]);
    }
}
