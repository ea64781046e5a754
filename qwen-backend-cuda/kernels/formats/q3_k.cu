// Q3_K: the low two bits of codes, their third bits; for every 16 values a scale of six bits, minus 32; for every 256
// values the f16 number that scales are multiples of. 4 stands for zero.
#include "block_kernels.cuh"

struct Q3K : BlockFormat {
    static const bool HALVES = true, OFFSET = true;

    struct Raw {
        uint2 codes;
        // Low bits of the scales of 128 values, high bits of those of 256.
        u32 third, low, high, d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load8_once(at.row + 8 * at.unit);
        raw.third = load4(at.plane(8) + 4 * at.unit);
        const Bytes scales = at.plane(12) + 12 * at.block();
        raw.low = load4(scales + at.unit % 8 / 4 * 4);
        raw.high = load4(scales + 8);
        raw.d = load2(at.plane(12) + 12 * (at.units / 8) + 2 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32 unit, Bytes) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            to.codes[i] = 0;
        }
        add_two_bits(to.codes, raw.codes, 0);
        add_one_bit(to.codes, raw.third, 2);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 i = 2 * (unit % 8) + half;
            const u32 scale = (raw.low >> 4 * (i % 8) & 15) | (raw.high >> 2 * i & 3) << 4;
            to.scale[half] = low_half(raw.d) * float(int(scale) - 32);
        }
        to.offset = -4.0f;
    }
};

BLOCK_KERNELS(q3_k, Q3K)
