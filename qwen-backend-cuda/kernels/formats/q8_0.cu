// Q8_0: signed bytes, then an f16 scale for every 32 values.
#include "block_kernels.cuh"

struct Q8_0 : BlockFormat {
    struct Raw {
        uint4 first, second;
        u32 scale;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.first = load16_once(at.row + 32 * at.unit);
        raw.second = load16_once(at.row + 32 * at.unit + 16);
        raw.scale = load2(at.plane(32) + 2 * at.unit);
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        eight_bits(to.codes, raw.first, raw.second);
        to.scale[0] = low_half(raw.scale);
    }
};

BLOCK_KERNELS(q8_0, Q8_0)
