// IQ4_XS: four-bit codes that index a table; for every 256 values eight scales of six bits, minus 32, and the f16 number
// that they are multiples of.
#include "levels.cuh"

struct Iq4Xs : BlockFormat {
    struct Raw {
        uint4 codes;
        u32 low, both;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        const Bytes head = at.plane(16) + 8 * at.block();
        raw.low = load4(head);
        raw.both = load4(head + 4);
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32 unit, Bytes) {
        levels(to.codes, raw.codes);
        const u32 i = unit % 8;
        const u32 scale = (raw.low >> 4 * i & 15) | (raw.both >> (16 + 2 * i) & 3) << 4;
        to.scale[0] = low_half(raw.both) * float(int(scale) - 32);
    }
};

BLOCK_KERNELS(iq4_xs, Iq4Xs)
