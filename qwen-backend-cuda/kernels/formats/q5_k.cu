// Q5_K: the low four bits of codes, their fifth bits, then the scales and minima of 256 values.
#include "scales_and_mins.cuh"

struct Q5K : BlockFormat {
    static const bool MIN = true;

    struct Raw {
        uint4 codes, head;
        u32 fifth;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.fifth = load4(at.plane(16) + 4 * at.unit);
        raw.head = load16(at.plane(20) + 16 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32 unit, Bytes) {
        four_bits(to.codes, raw.codes);
        add_one_bit(to.codes, raw.fifth, 4);
        scale_and_min(to, raw.head, unit);
    }
};

BLOCK_KERNELS(q5_k, Q5K)
