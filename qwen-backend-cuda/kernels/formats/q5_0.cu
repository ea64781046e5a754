// Q5_0: the low four bits of codes, their fifth bits, then an f16 scale for every 32 values; 16 stands for zero.
#include "block_kernels.cuh"

struct Q5_0 : BlockFormat {
    static const bool OFFSET = true;

    struct Raw {
        uint4 codes;
        u32 fifth, scale;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.fifth = load4(at.plane(16) + 4 * at.unit);
        raw.scale = load2(at.plane(20) + 2 * at.unit);
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        four_bits(to.codes, raw.codes);
        add_one_bit(to.codes, raw.fifth, 4);
        to.scale[0] = low_half(raw.scale);
        to.offset = -16.0f;
    }
};

BLOCK_KERNELS(q5_0, Q5_0)
