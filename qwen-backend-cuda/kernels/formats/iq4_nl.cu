// IQ4_NL: four-bit codes that index a table, then an f16 scale for every 32 values.
#include "levels.cuh"

struct Iq4Nl : BlockFormat {
    struct Raw {
        uint4 codes;
        u32 scale;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.codes = load16_once(at.row + 16 * at.unit);
        raw.scale = load2(at.plane(16) + 2 * at.unit);
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes) {
        levels(to.codes, raw.codes);
        to.scale[0] = low_half(raw.scale);
    }
};

BLOCK_KERNELS(iq4_nl, Iq4Nl)
