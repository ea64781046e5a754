// The emulator as a kernel compiled for the CPU sees it: indices, barriers, warps and shared memory.
//
// kernels/kernel.cuh includes this in place of NVRTC's builtins. Kernels do not call it directly; the twins of the
// GPU's instructions do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

struct Index3 {
    unsigned x, y, z;
};
// Those of the running thread, set whenever a fibre is switched to.
extern Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

const unsigned LANES = 32;
// Bytes that a lane gives to its warp at once, at most.
const unsigned GIVEN_BYTES = 64;
// Bytes of static shared memory that a block may have.
const unsigned STATIC_SHARED = 48 * 1024;

// A line of a kernel where threads wait for each other; with `line` 0, no line.
struct Site {
    const char* file;
    int line;
};

// A kernel, known to `emulate` by its name from its definition on.
struct Kernel {
    const char* name;
    unsigned params_size;
    // A block's threads, as its launch bounds say.
    unsigned threads;
    void (*body)(const void* params);
    const Kernel* next;

    Kernel(const char* name, unsigned params_size, unsigned threads, void (*body)(const void*));
};

// The values that the lanes of a warp gave in one exchange.
struct Given {
    alignas(16) unsigned char bytes[LANES][GIVEN_BYTES];

    template <class T>
    T of(unsigned lane) const {
        T value;
        memcpy(&value, bytes[lane], sizeof value);
        return value;
    }
};

// Wait for all threads of the block.
void barrier(Site site);

// Give `bytes` to the warp and wait until all its lanes have done so here. The values stay readable until this
// lane's next exchange.
const Given& exchange(const void* given, unsigned bytes, Site site);

// Record that threads wait at `site`. True if a test skips this wait. `barrier` calls it, other waits call it first. An
// exchange of values cannot be skipped.
bool without(Site site);

// End the launch with an error that names the kernel, the block and the thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Counts the blocks that have begun, in all launches: data of an older block is stale.
extern uint64_t blocks_begun;

// Count `bytes` of static shared memory as this block's.
void count_shared(size_t bytes);

// The launch's dynamic shared memory.
unsigned char* dynamic_shared();

// Fill with a value that is a NaN in each format and out of range as an index.
inline void poison(void* memory, size_t bytes) {
    memset(memory, 0xff, bytes);
}

// An array of static shared memory, poisoned when the first thread of a block reaches it.
template <class T, size_t N>
struct Shared {
    alignas(128) T values[N];
    uint64_t block = 0;

    T* of_this_block() {
        if (block != blocks_begun) {
            block = blocks_begun;
            count_shared(sizeof values);
            poison(static_cast<void*>(values), sizeof values);
        }
        return values;
    }
};

}  // namespace emulator
