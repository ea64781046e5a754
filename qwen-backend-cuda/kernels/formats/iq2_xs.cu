// IQ2_XS: for every 8 values the number of a point, nine bits, and seven signs; a scale of four bits for every 16
// values; for every 256 values an f16 scale.
#include "grid.cuh"

struct Iq2Xs : BlockFormat {
    static const u32 TABLE = 512 * 8;
    static const bool HALVES = true;

    struct Raw {
        uint2 points;
        u32 scales, d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.points = load8_once(at.row + 8 * at.unit);
        raw.scales = at.plane(8)[at.unit];
        raw.d = load2(at.plane(9) + 2 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes table) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 bits = (i < 2 ? raw.points.x : raw.points.y) >> 16 * (i % 2);
            const uint2 point = point_of_eight(table, bits & 511);
            put_eight(to.codes, i, point.x, point.y, eight_signs(bits >> 9));
        }
        to.scale[0] = low_half(raw.d) * (0.5f + float(raw.scales & 15)) * 0.25f;
        to.scale[1] = low_half(raw.d) * (0.5f + float(raw.scales >> 4)) * 0.25f;
    }
};

BLOCK_KERNELS(iq2_xs, Iq2Xs)
