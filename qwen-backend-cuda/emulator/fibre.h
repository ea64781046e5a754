// Fibres: several flows of control on one thread, each with its own stack, that switch to each other explicitly.
//
// swapcontext makes a system call each time, and a kernel hands over millions of times. So on x86-64 and aarch64 the
// switch is written out here: keep the registers that a called function has to keep, exchange the stack pointers, take
// the other side's registers back. Elsewhere it is swapcontext.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace emulator {

struct Fibre {
#if defined(__x86_64__) || defined(__aarch64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
};

// Make `fibre` begin with `entry`, which never returns, on the `bytes` at `stack` once it is handed over to.
void prepare(Fibre& fibre, void* stack, size_t bytes, void (*entry)());

// Switch from `from` to `to`. `from` continues here when it is switched to again.
void hand_over(Fibre& from, Fibre& to);

}  // namespace emulator
