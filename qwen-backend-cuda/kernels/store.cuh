// Writing to the paged K/V store: [num_key_value_heads][num_slots][head_dim], f32, f16 or Q8_0 (see params.cuh).
#pragma once
#include "q8.cuh"

// Store `value` at `index`, as f32 or f16, as `encoding` says. The branch is the same for a whole grid.
DEVICE void store_as(void* array, u32 encoding, size_t index, float value) {
    if (encoding == ENCODING_F16) {
        static_cast<u16*>(array)[index] = F16::encode(value);
    } else {
        static_cast<float*>(array)[index] = value;
    }
}

// Where the channels of a head's slot begin.
DEVICE size_t slot_start(u32 head, u32 slot, u32 num_slots, u32 head_dim) {
    return (size_t(head) * num_slots + slot) * head_dim;
}
