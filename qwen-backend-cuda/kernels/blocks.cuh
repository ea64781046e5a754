// Rows of blocks: planes of codes and scales, as qwen_core::backend::planes packs them, read by units of 32 columns.
//
// A format (formats/*.cu) is a structure with two functions. `load` reads what a unit of a row has in each plane, so
// that a kernel can have the loads of several rows under way; `decode` makes codes and scales of it. Every kernel is a
// template over formats: nothing else knows how one is laid out.
#pragma once
#include "numbers.cuh"

// Columns of a unit.
#define UNIT 32

typedef const unsigned char* Bytes;

// 32 columns of a row: a value is scale * (code + offset) - min.
struct Unit {
    // Four signed bytes each, in the order of the columns.
    u32 codes[8];
    // Of the first 16 columns and of the others, where the format has HALVES; else the first is that of all.
    float scale[2], min[2];
    // A whole number.
    float offset;
};

// What a format is unless it says otherwise.
struct BlockFormat {
    // Bytes of the table before the first row.
    static const u32 TABLE = 0;
    // Whether 16 columns have a scale of their own.
    static const bool HALVES = false;
    // Whether offsets, and minima, may differ from zero.
    static const bool OFFSET = false, MIN = false;
    // Whether columns may be stored in another order than activations.
    static const bool ORDERED = false;
};

// Where a unit is: its row's first byte, its number, and units of a row and of a group (GPTQ and AWQ).
struct UnitPlace {
    Bytes row;
    u32 unit, units, group_units;

    // The first byte of a plane that follows `bytes` bytes a unit of other planes.
    __device__ __forceinline__ Bytes plane(u32 bytes) const {
        return row + size_t(bytes) * units;
    }
    // Number of the block of 256 columns, and of the unit within it.
    __device__ __forceinline__ u32 block() const {
        return unit / 8;
    }
};

// ---- Loads of planes. Codes are read once; what follows them is shared by lanes that are neighbours.

DEVICE u32 load4(Bytes from) {
#ifndef __CUDACC_RTC__
    if (reinterpret_cast<size_t>(from) % 4 != 0) {
        emulator::fail("a 4-byte access at %p is not aligned", static_cast<const void*>(from));
    }
#endif
    return *reinterpret_cast<const u32*>(from);
}

DEVICE u32 load2(Bytes from) {
    return *reinterpret_cast<const u16*>(from);
}

// The f16 in the lower, and in the upper half of a word.
DEVICE float low_half(u32 word) {
    return f16_to_f32(u16(word));
}

DEVICE float high_half(u32 word) {
    return f16_to_f32(u16(word >> 16));
}

// ---- Codes, whose bits are interleaved so that masks and shifts leave four of them in the bytes of a word.

// 16 bytes with 32 codes of four bits.
DEVICE void four_bits(u32 (&codes)[8], uint4 packed) {
    const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        codes[2 * i] = words[i] & 0x0f0f0f0f;
        codes[2 * i + 1] = words[i] >> 4 & 0x0f0f0f0f;
    }
}

// 8 bytes with 32 codes of two bits, shifted left by `shift` and added.
DEVICE void add_two_bits(u32 (&codes)[8], uint2 packed, u32 shift) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        codes[i] |= (packed.x >> 2 * i & 0x03030303) << shift;
        codes[4 + i] |= (packed.y >> 2 * i & 0x03030303) << shift;
    }
}

// A word with 32 codes of one bit, likewise.
DEVICE void add_one_bit(u32 (&codes)[8], u32 packed, u32 shift) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        codes[i] |= (packed >> i & 0x01010101) << shift;
    }
}

DEVICE void eight_bits(u32 (&codes)[8], uint4 first, uint4 second) {
    const u32 words[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        codes[i] = words[i];
    }
}

// Code `i` of a word.
DEVICE int code_of(u32 word, u32 i) {
    return static_cast<signed char>(word >> 8 * i);
}

// 2^23 + byte `i` of a word. One selection of bytes makes it, where a conversion takes three instructions of which GPUs
// do fewer at a time.
DEVICE float byte_above(u32 word, u32 i) {
#ifdef __CUDACC_RTC__
    u32 bits;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bits) : "r"(word), "r"(0x4b000000), "r"(0x7440 | i));
    return as_float(bits);
#else
    return float(8388608 + (word >> 8 * i & 255));
#endif
}

// The values of four codes, those with number 4 i .. 4 i + 3 of the unit.
template <class Format>
DEVICE void values_of(float (&values)[4], const Unit& unit, u32 i) {
    const u32 half = Format::HALVES ? i / 4 : 0;
    // Codes are made positive by adding 128. All of these are whole numbers below 2^24: exact.
    const u32 word = unit.codes[i] ^ 0x80808080;
    const float zero = 8388608.0f + 128.0f - (Format::OFFSET ? unit.offset : 0.0f);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const float shifted = byte_above(word, j) - zero;
        values[j] = Format::MIN ? fmaf(unit.scale[half], shifted, -unit.min[half]) : unit.scale[half] * shifted;
    }
}
