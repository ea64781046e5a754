// Q2_K: two-bit codes; for every 16 values a byte with a scale and a minimum of four bits; for every 256 values the f16
// numbers that scales and minima are multiples of.
#include "block_kernels.cuh"

struct Q2K : BlockFormat {
    static const bool HALVES = true, MIN = true;

    struct Raw {
        uint2 codes;
        u32 scales, d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load8_once(at.row + 8 * at.unit);
        raw.scales = load2(at.plane(8) + 2 * at.unit);
        raw.d = load4(at.plane(10) + 4 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            to.codes[i] = 0;
        }
        add_two_bits(to.codes, raw.codes, 0);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 both = raw.scales >> 8 * half;
            to.scale[half] = low_half(raw.d) * float(both & 15);
            to.min[half] = high_half(raw.d) * float(both >> 4 & 15);
        }
    }
};

BLOCK_KERNELS(q2_k, Q2K)
