// The vocabulary of the kernels: how one is declared, its shared memory, barriers, shuffles and wide loads.
//
// The same text is compiled by NVRTC for the GPU and by g++ for the emulator. For each instruction that C++ cannot
// express there is a small function here (or beside its one use) with two bodies: the instruction, and its meaning.
// Kernels use threadIdx, blockIdx, blockDim and gridDim as CUDA has them, blocks have one dimension and whole warps,
// and warp operations are for all 32 lanes.
//
// Numbers: only fmaf is fused, division and square roots are exact, subnormals are kept. So GPU and CPU agree to the
// bit.
#pragma once
#include "params.cuh"

#ifdef __CUDACC_RTC__

// KERNEL(name, Params, threads, blocks): a kernel for blocks of `threads`, compiled so that a multiprocessor of 64 K
// registers takes `blocks` of them at once. Its body follows, with `p` the parameters.
#define KERNEL(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)

// SHARED(type, name, count): an array in a block's shared memory. Its contents are undefined at first.
#define SHARED(type, name, count) __shared__ __align__(128) type name[count]

// DYNAMIC_SHARED(type, name): the shared memory that the launch asked for.
#define DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared)

#else

#include <cmath>

#include "emulator.h"

#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict

#define KERNEL(name, Params, threads, blocks)                                                                        \
    static void name(const Params& p);                                                                               \
    static const emulator::Kernel name##_known(#name, sizeof(Params), threads,                                       \
                                               [](const void* p) { name(*static_cast<const Params*>(p)); });         \
    static void name(const Params& p)

#define SHARED(type, name, count)                  \
    static emulator::Shared<type, count> name##_array; \
    type* const name = name##_array.of_this_block()

#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(emulator::dynamic_shared())

struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(8) float2 {
    float x, y;
};

// Last parameters of the twin of an instruction that waits: the line of the kernel that it is called from.
#define CALLED_FROM const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SITE emulator::Site{file, line}

#endif

#define DEVICE static __device__ __forceinline__

// ---- Threads

// Wait for all threads of the block, and see what they wrote.
#ifdef __CUDACC_RTC__
DEVICE void barrier() {
    __syncthreads();
}
#else
DEVICE void barrier(CALLED_FROM) {
    emulator::barrier(SITE);
}
#endif

DEVICE u32 lane() {
    return threadIdx.x % 32;
}

DEVICE u32 warp() {
    return threadIdx.x / 32;
}

// The value of the lane whose number differs in the bits of `mask`.
#ifdef __CUDACC_RTC__
DEVICE u32 shuffle_xor(u32 value, u32 mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
DEVICE float shuffle_xor(float value, u32 mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
#else
template <class T>
DEVICE T shuffle_xor(T value, u32 mask, CALLED_FROM) {
    return emulator::exchange(&value, sizeof value, SITE).template of<T>(lane() ^ mask);
}
#endif

// The value of lane `from`.
#ifdef __CUDACC_RTC__
DEVICE u32 shuffle(u32 value, u32 from) {
    return __shfl_sync(0xffffffffu, value, from);
}
#else
DEVICE u32 shuffle(u32 value, u32 from, CALLED_FROM) {
    return emulator::exchange(&value, sizeof value, SITE).of<u32>(from % 32);
}
#endif

// Wait for the lanes of the warp, and see what they wrote.
#ifdef __CUDACC_RTC__
DEVICE void warp_barrier() {
    __syncwarp();
}
#else
DEVICE void warp_barrier(CALLED_FROM) {
    if (!emulator::without(SITE)) {
        emulator::exchange(&line, sizeof line, SITE);
    }
}
#endif

// The value of the lane `delta` below this one; the first `delta` lanes keep their own.
#ifdef __CUDACC_RTC__
DEVICE float shuffle_up(float value, u32 delta) {
    return __shfl_up_sync(0xffffffffu, value, delta);
}
#else
DEVICE float shuffle_up(float value, u32 delta, CALLED_FROM) {
    return emulator::exchange(&value, sizeof value, SITE).of<float>(lane() < delta ? lane() : lane() - delta);
}
#endif

// ---- Bits

#ifdef __CUDACC_RTC__
DEVICE float as_float(u32 bits) {
    return __uint_as_float(bits);
}
DEVICE u32 as_u32(float value) {
    return __float_as_uint(value);
}
#else
DEVICE float as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
DEVICE u32 as_u32(float value) {
    u32 bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
#endif

// ---- Memory

#ifndef __CUDACC_RTC__
// Emulated only: check the address of a 16-byte access.
inline void check_aligned(const void* address) {
    if (reinterpret_cast<size_t>(address) % 16 != 0) {
        emulator::fail("a 16-byte access at %p is not aligned", address);
    }
}
#endif

// 16 bytes that are read again soon: activations, tables.
DEVICE uint4 load16(const void* from) {
#ifndef __CUDACC_RTC__
    check_aligned(from);
#endif
    return *static_cast<const uint4*>(from);
}

DEVICE float4 load_float4(const float* from) {
#ifndef __CUDACC_RTC__
    check_aligned(from);
#endif
    return *reinterpret_cast<const float4*>(from);
}

// 16 bytes that no kernel writes while this one runs and that are read once: weights, keys and values. They bypass
// the first cache, which is left to activations.
DEVICE uint4 load16_once(const void* from) {
#ifdef __CUDACC_RTC__
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(from)));
    return v;
#else
    return load16(from);
#endif
}

// 8 such bytes.
DEVICE uint2 load8_once(const void* from) {
#ifdef __CUDACC_RTC__
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(__cvta_generic_to_global(from)));
    return v;
#else
    if (reinterpret_cast<size_t>(from) % 8 != 0) {
        emulator::fail("an 8-byte access at %p is not aligned", from);
    }
    return *static_cast<const uint2*>(from);
#endif
}

DEVICE void store16(void* to, uint4 v) {
#ifndef __CUDACC_RTC__
    check_aligned(to);
#endif
    *static_cast<uint4*>(to) = v;
}

DEVICE void store_float4(float* to, float4 v) {
#ifndef __CUDACC_RTC__
    check_aligned(to);
#endif
    *reinterpret_cast<float4*>(to) = v;
}

// ---- Integers

DEVICE u32 smaller(u32 a, u32 b) {
    return a < b ? a : b;
}

DEVICE u32 div_up(u32 a, u32 b) {
    return (a + b - 1) / b;
}
