// {format}_embed: the rows of a table in blocks that ids name, decoded to f32. A block of threads takes a token, a thread
// a unit at a time.
#pragma once
#include "blocks.cuh"

#define BLOCK_EMBED_THREADS 128

template <class Format>
DEVICE void block_embed(const Embed& p) {
    const u32 id = p.ids[blockIdx.x];
    float* const out = p.out + size_t(blockIdx.x) * p.cols;
    if (id >= p.vocab) {
        for (u32 col = threadIdx.x; col < p.cols; col += BLOCK_EMBED_THREADS) {
            out[col] = 0.0f;
        }
        return;
    }
    const Bytes table = static_cast<Bytes>(p.table);
    UnitPlace at = {table + Format::TABLE + size_t(id) * p.stride, 0, p.cols / UNIT, p.group_units};
    for (at.unit = threadIdx.x; at.unit < at.units; at.unit += BLOCK_EMBED_THREADS) {
        typename Format::Raw raw;
        Format::load(raw, at);
        Unit unit;
        Format::decode(unit, raw, at.unit, table);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            float values[4];
            values_of<Format>(values, unit, i);
            const u32 col = UNIT * at.unit + 4 * i;
            if (Format::ORDERED && p.column_order) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    out[p.column_order[col + j]] = values[j];
                }
            } else {
                store_float4(out + col, float4{values[0], values[1], values[2], values[3]});
            }
        }
    }
}
