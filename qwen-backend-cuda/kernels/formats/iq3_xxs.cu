// IQ3_XXS: the number of a point for every 4 values; for every 32 values a word with four times seven signs and a scale;
// for every 256 values an f16 scale.
#include "grid.cuh"

struct Iq3Xxs : BlockFormat {
    static const u32 TABLE = 256 * 4;

    struct Raw {
        uint2 points;
        u32 signs, d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.points = load8_once(at.row + 8 * at.unit);
        raw.signs = load4(at.plane(8) + 4 * at.unit);
        raw.d = load2(at.plane(12) + 2 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes table) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 points = (i < 2 ? raw.points.x : raw.points.y) >> 16 * (i % 2);
            const u32 first = point_of_four(table, points & 255), second = point_of_four(table, points >> 8 & 255);
            put_eight(to.codes, i, first, second, eight_signs(raw.signs >> 7 * i));
        }
        to.scale[0] = low_half(raw.d) * (0.5f + float(raw.signs >> 28)) * 0.5f;
    }
};

BLOCK_KERNELS(iq3_xxs, Iq3Xxs)
