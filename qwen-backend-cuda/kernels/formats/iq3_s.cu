// IQ3_S: the low byte of the number of a point for every 4 values, a byte of signs for every 8, the ninth bits of the
// numbers; a scale of four bits for every 32 values; for every 256 values an f16 scale.
#include "grid.cuh"

struct Iq3S : BlockFormat {
    static const u32 TABLE = 512 * 4;

    struct Raw {
        uint2 low;
        u32 signs, ninth, scale, d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.low = load8_once(at.row + 8 * at.unit);
        raw.signs = load4(at.plane(8) + 4 * at.unit);
        raw.ninth = at.plane(12)[at.unit];
        raw.scale = at.plane(13)[at.unit / 2];
        raw.d = load2(at.plane(13) + at.units / 2 + 2 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32 unit, Bytes table) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 low = (i < 2 ? raw.low.x : raw.low.y) >> 16 * (i % 2), ninth = raw.ninth >> 2 * i;
            const u32 first = point_of_four(table, (low & 255) | (ninth & 1) << 8);
            const u32 second = point_of_four(table, (low >> 8 & 255) | (ninth & 2) << 7);
            put_eight(to.codes, i, first, second, raw.signs >> 8 * i);
        }
        to.scale[0] = low_half(raw.d) * (1.0f + 2.0f * float(raw.scale >> 4 * (unit % 2) & 15));
    }
};

BLOCK_KERNELS(iq3_s, Iq3S)
