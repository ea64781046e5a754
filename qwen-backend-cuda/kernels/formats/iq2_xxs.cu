// IQ2_XXS: for every 32 values four numbers of points and a word with four times seven signs and a scale; for every 256
// values an f16 scale.
#include "grid.cuh"

struct Iq2Xxs : BlockFormat {
    static const u32 TABLE = 256 * 8;

    struct Raw {
        uint2 head;
        u32 d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.head = load8_once(at.row + 8 * at.unit);
        raw.d = load2(at.plane(8) + 2 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes table) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const uint2 point = point_of_eight(table, raw.head.x >> 8 * i & 255);
            put_eight(to.codes, i, point.x, point.y, eight_signs(raw.head.y >> 7 * i));
        }
        to.scale[0] = low_half(raw.d) * (0.5f + float(raw.head.y >> 28)) * 0.25f;
    }
};

BLOCK_KERNELS(iq2_xxs, Iq2Xxs)
