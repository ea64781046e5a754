// Q4_0: four-bit codes minus 8, then an f16 scale for every 32 values.
#include "block_kernels.cuh"

struct Q4_0 : BlockFormat {
    static const bool OFFSET = true;

    struct Raw {
        uint4 codes;
        u32 scale;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.scale = load2(at.plane(16) + 2 * at.unit);
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        four_bits(to.codes, raw.codes);
        to.scale[0] = low_half(raw.scale);
        to.offset = -8.0f;
    }
};

BLOCK_KERNELS(q4_0, Q4_0)
