// The values of four-bit codes in IQ4_NL and IQ4_XS.
#pragma once
#include "block_kernels.cuh"

// Four bytes of the eight of `low` and `high`: those whose numbers are the low three bits of the selector's nibbles.
DEVICE u32 pick_bytes(u32 low, u32 high, u32 selector) {
#ifdef __CUDACC_RTC__
    u32 picked;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(picked) : "r"(low), "r"(high), "r"(selector));
    return picked;
#else
    const u64 both = low | u64(high) << 32;
    u32 picked = 0;
    for (u32 i = 0; i < 4; i++) {
        if (selector >> 4 * i & 8) {
            emulator::fail("a selector of bytes has a sign: %x", selector);
        }
        picked |= u32(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    }
    return picked;
#endif
}

// The levels of four codes, the low 16 bits of `codes`.
DEVICE u32 four_levels(u32 codes) {
    const u32 below = pick_bytes(0xbfad9881, 0xf6eaddcf, codes & 0x7777);
    const u32 above = pick_bytes(0x26190d01, 0x71594535, codes & 0x7777);
    // Byte i of one or of the other.
    return pick_bytes(below, above, 0x3210 | (codes & 0x8888) >> 1);
}

// 32 codes, which four_bits would separate: here their levels.
DEVICE void levels(u32 (&codes)[8], uint4 packed) {
    const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        // Nibbles alternate between the first and the second four columns.
        const u32 low = four_levels(words[i] & 0xffff), high = four_levels(words[i] >> 16);
        codes[2 * i] = pick_bytes(low, high, 0x6420);
        codes[2 * i + 1] = pick_bytes(low, high, 0x7531);
    }
}
