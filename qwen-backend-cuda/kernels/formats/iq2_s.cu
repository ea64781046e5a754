// IQ2_S: the low bytes of the numbers of points, a byte of signs for each, their two high bits; a scale of four bits for
// every 16 values; for every 256 values an f16 scale.
#include "grid.cuh"

struct Iq2S : BlockFormat {
    static const u32 TABLE = 1024 * 8;
    static const bool HALVES = true;

    struct Raw {
        u32 low, signs, high, scales, d;
    };

    DEVICE void load(Raw& raw, const UnitPlace& at) {
        raw.low = load4(at.row + 4 * at.unit);
        raw.signs = load4(at.plane(4) + 4 * at.unit);
        raw.high = at.plane(8)[at.unit];
        raw.scales = at.plane(9)[at.unit];
        raw.d = load2(at.plane(10) + 2 * at.block());
    }

    DEVICE void decode(Unit& to, const Raw& raw, u32, Bytes table) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const uint2 point = point_of_eight(table, (raw.low >> 8 * i & 255) | (raw.high >> 2 * i & 3) << 8);
            put_eight(to.codes, i, point.x, point.y, raw.signs >> 8 * i);
        }
        to.scale[0] = low_half(raw.d) * (0.5f + float(raw.scales & 15)) * 0.25f;
        to.scale[1] = low_half(raw.d) * (0.5f + float(raw.scales >> 4)) * 0.25f;
    }
};

BLOCK_KERNELS(iq2_s, Iq2S)
