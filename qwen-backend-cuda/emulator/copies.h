// The host twin of cp.async. A copy is made as late as a GPU may make it: when its thread waits for the copy's
// group. Until then its target holds poison, so that a kernel which reads too early, or still needs what it
// overwrites, shows.
#pragma once
#include "emulator.h"

namespace emulator {

// The copies that a thread has under way.
struct Copies {
    static const unsigned MOST = 128;
    static const unsigned BYTES = 16;

    struct Copy {
        unsigned char* to;
        // Null: zeros.
        const void* from;
        unsigned group;
    };

    Copy copies[MOST];
    unsigned count;
    // Groups closed so far.
    unsigned groups;
    // The block that these belong to: copies that an earlier block never waited for are dropped.
    uint64_t block;
};

inline Copies& copies_of_thread() {
    static Copies all[1024];
    Copies& mine = all[threadIdx.x];
    if (mine.block != blocks_begun) {
        mine.block = blocks_begun;
        mine.count = mine.groups = 0;
    }
    return mine;
}

inline void copy_async(unsigned char* to, const void* from) {
    Copies& mine = copies_of_thread();
    if (mine.count == Copies::MOST) {
        fail("has more than %u copies under way", Copies::MOST);
    }
    if (uintptr_t(to) % Copies::BYTES != 0 || uintptr_t(from) % Copies::BYTES != 0) {
        fail("copies 16 bytes to or from an address that is no multiple of 16");
    }
    poison(to, Copies::BYTES);
    mine.copies[mine.count++] = {to, from, mine.groups};
}

inline void commit_copies() {
    copies_of_thread().groups++;
}

// Make the copies of all groups but the `last` ones.
inline void await_copies(unsigned last, Site site) {
    if (without(site)) {
        return;
    }
    Copies& mine = copies_of_thread();
    unsigned kept = 0;
    for (unsigned i = 0; i < mine.count; i++) {
        const Copies::Copy copy = mine.copies[i];
        if (copy.group + last >= mine.groups) {
            mine.copies[kept++] = copy;
        } else if (copy.from) {
            memcpy(copy.to, copy.from, Copies::BYTES);
        } else {
            memset(copy.to, 0, Copies::BYTES);
        }
    }
    mine.count = kept;
}

}  // namespace emulator
