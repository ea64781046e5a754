// Q4_1: four-bit codes, then an f16 scale and an f16 minimum for every 32 values.
#include "block_kernels.cuh"

struct Q4_1 : BlockFormat {
    static const bool MIN = true;

    struct Raw {
        uint4 codes;
        u32 both;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.both = load4(at.plane(16) + 4 * at.unit);
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        four_bits(to.codes, raw.codes);
        to.scale[0] = low_half(raw.both);
        to.min[0] = -high_half(raw.both);
    }
};

BLOCK_KERNELS(q4_1, Q4_1)
