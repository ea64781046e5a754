// rope: rotate the query and key heads of each token by its angles, in place. A block takes a token.
#include "math.cuh"

#define ROPE_THREADS 128

KERNEL(rope, Heads, ROPE_THREADS, 8) {
    const u32 half = p.head_dim / 2;
    const u32 rotated = p.num_attention_heads + p.num_key_value_heads;
    const u32 width = (rotated + p.num_key_value_heads) * p.head_dim;
    const float* const cosines = p.cos_sin + size_t(blockIdx.x) * p.head_dim;
    float* const row = p.qkv + size_t(blockIdx.x) * width;
    for (u32 pair = threadIdx.x; pair < rotated * half; pair += ROPE_THREADS) {
        const u32 i = pair % half;
        float* const first = row + pair / half * p.head_dim + i;
        const float2 turned = rotate(float2{first[0], first[half]}, cosines[i], cosines[half + i]);
        first[0] = turned.x;
        first[half] = turned.y;
    }
}
