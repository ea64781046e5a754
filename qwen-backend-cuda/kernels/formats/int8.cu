// Groups of bytes, as in GPTQ, then a word for each group: an f16 scale, and the code that stands for zero. Codes are
// made signed by taking 128 from them, and from the zero.
#include "block_kernels.cuh"

struct Int8 : BlockFormat {
    static const bool OFFSET = true, ORDERED = true;

    struct Raw {
        uint4 first, second;
        u32 both;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.first = load16_once(at.row + 32 * at.unit);
        raw.second = load16_once(at.row + 32 * at.unit + 16);
        raw.both = load4(at.plane(32) + 4 * (at.unit / at.group_units));
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        eight_bits(to.codes, raw.first, raw.second);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            to.codes[i] ^= 0x80808080;
        }
        to.scale[0] = low_half(raw.both);
        to.offset = 128.0f - float(raw.both >> 16);
    }
};

BLOCK_KERNELS(int8, Int8)
