// Groups of values of four bits, as in GPTQ and AWQ, then a word for each group: an f16 scale, and the code that stands
// for zero.
#include "block_kernels.cuh"

struct Int4 : BlockFormat {
    static const bool OFFSET = true, ORDERED = true;

    struct Raw {
        uint4 codes;
        u32 both;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.both = load4(at.plane(16) + 4 * (at.unit / at.group_units));
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        four_bits(to.codes, raw.codes);
        to.scale[0] = low_half(raw.both);
        to.offset = -float(raw.both >> 16);
    }
};

BLOCK_KERNELS(int4, Int4)
