// A kernel only for tests/layouts.rs: one product of 16 x 16 and 16 x 8, with each value put where the PTX ISA's
// description of mma.m16n8k16 has it, value by value. The twin of mma has to agree with a plain product then; kernels
// that share a mistake with the twin would not show it.
#include "mma.cuh"

struct MmaLayouts {
    const u16* a;      // [16, 16]
    const u16* b;      // [16, 8]
    float* c;          // [16, 8]
    float* transposed;  // [16, 8]: the same with fragments from load_tiles and load_tiles_transposed
};

template <class Half>
static void mma_layouts(const MmaLayouts& p) {
    const u32 group = lane() >> 2, in_group = lane() & 3;
    u16 a[8], b[4];
    for (u32 i = 0; i < 8; i++) {
        const u32 row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        const u32 col = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a[i] = p.a[row * 16 + col];
    }
    for (u32 i = 0; i < 4; i++) {
        const u32 row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
        b[i] = p.b[row * 8 + group];
    }
    u32 words[6];
    for (u32 i = 0; i < 6; i++) {
        const u16* const pair = i < 4 ? a + 2 * i : b + 2 * (i - 4);
        words[i] = pair[0] | u32(pair[1]) << 16;
    }
    float c[4] = {};
    mma(Half(), c, {words[0], words[1], words[2], words[3]}, words[4], words[5]);
    for (u32 i = 0; i < 4; i++) {
        p.c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = c[i];
    }

    // Rows of 24, so that eight of them are in different banks.
    SHARED(u16, shared, 16 * 24 + 16 * 8);
    for (u32 i = lane(); i < 256; i += 32) {
        shared[i / 16 * 24 + i % 16] = p.a[i];
    }
    for (u32 i = lane(); i < 128; i += 32) {
        shared[16 * 24 + i] = p.b[i];
    }
    warp_barrier();
    u32 rows[4], columns[4];
    // Matrices 0 to 3: rows 0 to 7, then 8 to 15, of the left half; then of the right.
    load_tiles(rows, shared_address(shared + (lane() % 16) * 24 + lane() / 16 * 8));
    // Matrices 0 and 1: rows 0 to 7 and 8 to 15; 2 and 3 repeat them.
    load_tiles_transposed(columns, shared_address(shared + 16 * 24 + (lane() % 16) * 8));
    float d[4] = {};
    mma(Half(), d, rows, columns[0], columns[1]);
    for (u32 i = 0; i < 4; i++) {
        p.transposed[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = d[i];
    }
}

KERNEL(mma_layouts_bf16, MmaLayouts, 32, 1) {
    mma_layouts<Bf16>(p);
}
KERNEL(mma_layouts_f16, MmaLayouts, 32, 1) {
    mma_layouts<F16>(p);
}
