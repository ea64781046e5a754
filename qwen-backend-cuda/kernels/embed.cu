// embed: the rows of a table that ids name, decoded to f32. A block takes a token.
#include "numbers.cuh"

#define EMBED_THREADS 128

template <class Format>
DEVICE void decode_row(const Embed& p, u32 id, float* out) {
    const typename Format::Stored* const table = static_cast<const typename Format::Stored*>(p.table);
    const typename Format::Stored* const row = table + size_t(id) * p.stride;
    for (u32 col = Format::WIDE * threadIdx.x; col < p.cols; col += Format::WIDE * EMBED_THREADS) {
        // A row of the table is padded to whole chunks; a row of `out` is not.
        float values[Format::WIDE];
        Format::decode(load16(row + col), values);
#pragma unroll
        for (u32 i = 0; i < Format::WIDE; i++) {
            if (col + i < p.cols) {
                out[col + i] = values[i];
            }
        }
    }
}

KERNEL(embed, Embed, EMBED_THREADS, 8) {
    const u32 id = p.ids[blockIdx.x];
    float* const out = p.out + size_t(blockIdx.x) * p.cols;
    if (id >= p.vocab) {
        for (u32 col = threadIdx.x; col < p.cols; col += EMBED_THREADS) {
            out[col] = 0.0f;
        }
    } else if (p.encoding == ENCODING_F32) {
        decode_row<F32>(p, id, out);
    } else if (p.encoding == ENCODING_BF16) {
        decode_row<Bf16>(p, id, out);
    } else {
        decode_row<F16>(p, id, out);
    }
}
