// Q4_K: four-bit codes, then the scales and minima of 256 values.
#include "scales_and_mins.cuh"

struct Q4K : BlockFormat {
    static const bool MIN = true;

    struct Raw {
        uint4 codes, head;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.head = load16(at.plane(16) + 16 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32 unit, Bytes) {
        four_bits(to.codes, raw.codes);
        scale_and_min(to, raw.head, unit);
    }
};

BLOCK_KERNELS(q4_k, Q4K)
