// The instructions of compute capability 8.0 that kernels for prompts use, each as a function: products of 16-bit tiles
// by tensor cores, the loads of their fragments from shared memory, and asynchronous copies to shared memory. The host
// twins give the same fragments to the same lanes, through the emulator's exchange.
//
// Fragments are spread over a warp as the PTX ISA says. With g = lane / 4 and t = lane % 4, and two values in a word:
//   a (16 x 16): words 0..4 are row g, g + 8, g, g + 8; columns 2t, 2t + 1, and 8 more in words 2 and 3.
//   b (16 x 8):  words 0, 1 are column g; rows 2t, 2t + 1, and 8 more in word 1.
//   c (16 x 8):  values 0, 1 are row g, columns 2t and 2t + 1; values 2, 3 row g + 8.
#pragma once
#include "numbers.cuh"
#ifndef __CUDACC_RTC__
#include "copies.h"
#endif

// ---- Where a byte of shared memory is, in the form that these instructions take. Offsets are added to it.
#ifdef __CUDACC_RTC__
typedef u32 SharedAddress;
DEVICE SharedAddress shared_address(void* p) {
    return u32(__cvta_generic_to_shared(p));
}
#else
typedef unsigned char* SharedAddress;
DEVICE SharedAddress shared_address(void* p) {
    return static_cast<SharedAddress>(p);
}
#endif

// ---- c += a b, products exact and sums in f32.
#ifdef __CUDACC_RTC__
DEVICE void mma(F16, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void mma(Bf16, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
template <class Half>
DEVICE void mma(Half, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, CALLED_FROM) {
    struct Fragments {
        u32 a[4], b[2];
    };
    const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const emulator::Given& given = emulator::exchange(&mine, sizeof mine, SITE);
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (u32 k = 0; k < 16; k++) {
        const u32 owner = k % 8 / 2, upper = k / 8, shift = 16 * (k % 2);
        const auto of_row = given.of<Fragments>(4 * g + owner);
        const float low = Half::decode(u16(of_row.a[2 * upper] >> shift));
        const float high = Half::decode(u16(of_row.a[2 * upper + 1] >> shift));
        for (u32 j = 0; j < 2; j++) {
            const auto of_column = given.of<Fragments>(4 * (2 * t + j) + owner);
            const float column = Half::decode(u16(of_column.b[upper] >> shift));
            c[j] += low * column;
            c[2 + j] += high * column;
        }
    }
}
#endif

// ---- Load four 8 x 8 tiles of 16-bit values: lane l gives the address of row l % 8 of tile l / 8, 16 bytes each.
// Word i is, of tile i, row g, columns 2t and 2t + 1; transposed: column g, rows 2t and 2t + 1.
#ifdef __CUDACC_RTC__
DEVICE void load_tiles(u32 (&words)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(row)
                 : "memory");
}

DEVICE void load_tiles_transposed(u32 (&words)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(row)
                 : "memory");
}
#else
// Emulated only: check the row addresses of all lanes. Eight rows that are read at once have to be in different banks,
// or the GPU reads one after the other.
struct TileRows {
    SharedAddress at[32];

    TileRows(SharedAddress mine, emulator::Site site) {
        const emulator::Given& given = emulator::exchange(&mine, sizeof mine, site);
        for (u32 l = 0; l < 32; l++) {
            at[l] = given.of<SharedAddress>(l);
            check_aligned(at[l]);
        }
        for (u32 tile = 0; tile < 32; tile += 8) {
            u32 banks = 0;
            for (u32 l = tile; l < tile + 8; l++) {
                banks |= 1u << reinterpret_cast<size_t>(at[l]) / 16 % 8;
            }
            if (banks != 0xff) {
                emulator::fail("load_tiles at line %d: rows of a tile share banks", site.line);
            }
        }
    }
};

DEVICE void load_tiles(u32 (&words)[4], SharedAddress row, CALLED_FROM) {
    const TileRows rows(row, SITE);
    for (u32 i = 0; i < 4; i++) {
        memcpy(&words[i], rows.at[8 * i + lane() / 4] + 4 * (lane() % 4), 4);
    }
}

DEVICE void load_tiles_transposed(u32 (&words)[4], SharedAddress row, CALLED_FROM) {
    const TileRows rows(row, SITE);
    for (u32 i = 0; i < 4; i++) {
        u16 pair[2];
        for (u32 j = 0; j < 2; j++) {
            memcpy(&pair[j], rows.at[8 * i + lane() % 4 * 2 + j] + lane() / 4 * 2, 2);
        }
        words[i] = pair[0] | u32(pair[1]) << 16;
    }
}
#endif

// ---- Copies of 16 bytes from global to shared memory, past the registers and the L1 cache; zeros where `there` is
// false, and `from` is not read. `await_copies` makes them visible to the thread that made them; a barrier after it, to
// the others. `commit_copies` closes a group; `await_copies<N>` waits for all groups but the N last ones.
#ifdef __CUDACC_RTC__
DEVICE void copy_async(SharedAddress to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

DEVICE void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N>
DEVICE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#else
DEVICE void copy_async(SharedAddress to, const void* from, bool there) {
    emulator::copy_async(to, there ? from : nullptr);
}

DEVICE void commit_copies() {
    emulator::commit_copies();
}
template <int N>
DEVICE void await_copies(CALLED_FROM) {
    emulator::await_copies(N, SITE);
}
#endif

// ---- Two values rounded to f16, the first in the lower half of the word.
DEVICE u32 f16_pair(float first, float second) {
#ifdef __CUDACC_RTC__
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
#else
    return f32_to_f16(first) | u32(f32_to_f16(second)) << 16;
#endif
}
