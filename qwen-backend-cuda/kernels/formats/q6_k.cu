// Q6_K: the low four bits of codes, the next two; a signed byte as the scale of every 16 values; for every 256 values the
// f16 number that scales are multiples of. 32 stands for zero.
#include "block_kernels.cuh"

struct Q6K : BlockFormat {
    static const bool HALVES = true, OFFSET = true;

    struct Raw {
        uint4 codes;
        uint2 high;
        u32 scales, d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.high = load8_once(at.plane(16) + 8 * at.unit);
        raw.scales = load2(at.plane(24) + 2 * at.unit);
        raw.d = load2(at.plane(26) + 2 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        four_bits(to.codes, raw.codes);
        add_two_bits(to.codes, raw.high, 4);
        to.scale[0] = low_half(raw.d) * float(code_of(raw.scales, 0));
        to.scale[1] = low_half(raw.d) * float(code_of(raw.scales, 1));
        to.offset = -32.0f;
    }
};

BLOCK_KERNELS(q6_k, Q6K)
