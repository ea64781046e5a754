// Runs the CUDA kernels on the CPU: one fibre a CUDA thread, one block at a time, in a fixed order.
//
// A warp's lanes run one after the other until each waits: for its warp (`exchange`), for its block (`barrier`), or for
// nothing more. Then the warp goes on, if all its lanes wait at the same line, until the block's barrier; then the next
// warp. Undefined behaviour of a GPU ends the launch with an error: barriers that not all threads reach, warp
// operations with lanes missing, memory that is not there. The order of threads is forwards or backwards: a barrier too
// few gives wrong numbers in one of them at least, because shared memory is poisoned before each block.
//
// State is global: one launch runs at a time, and callers take turns. A process that loads several copies of the library
// can run a launch in each.
#include "emulator.h"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "fibre.h"

Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

const unsigned MAX_THREADS = 1024;
// Not a power of two, or the same depth of all stacks would lie in the same few lines of the CPU's caches.
const size_t STACK_BYTES = 64 * 1024 + 9 * 64;
// The most that an H200 gives a block.
const size_t DYNAMIC_SHARED = 227 * 1024;
// Bytes after the dynamic shared memory that have to stay as they are.
const size_t GUARD_BYTES = 256;

enum class State { Ready, AtBarrier, AtExchange, Left };

struct Thread {
    Fibre fibre;
    State state;
    Site site;
    // Which of the warp's two sets of slots its next exchange uses. Two, so that a lane which has gone on does not
    // overwrite values that another lane has yet to read.
    unsigned turn;
};

const Kernel* kernels = nullptr;

Thread threads[MAX_THREADS];
Given given[MAX_THREADS / LANES][2];
unsigned char* stacks = nullptr;
alignas(128) unsigned char dynamic[DYNAMIC_SHARED + GUARD_BYTES];
size_t dynamic_bytes, static_bytes;

Fibre scheduler;
Thread* running = nullptr;
const Kernel* kernel;
const void* params;
// Whether the threads and warps of a block run backwards.
bool reverse;
bool failed;
std::string message;

// Sites that the last launch waited at, and the one that is passed over.
std::vector<Site> sites;
std::string passed_over;

bool same(Site a, Site b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

std::string text(Site site) {
    const char* slash = strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string text(const Thread& thread) {
    switch (thread.state) {
        case State::Ready:
            return "runs";
        case State::AtBarrier:
            return "waits at the barrier " + text(thread.site);
        case State::AtExchange:
            return "waits for its warp at " + text(thread.site);
        default:
            return "has left";
    }
}

void set_message(const std::string& what) {
    failed = true;
    message = std::string("kernel ") + kernel->name + ", block (" + std::to_string(blockIdx.x) + ", " +
              std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "), thread " +
              std::to_string(threadIdx.x) + ": " + what;
}

void wait(State state, Site site) {
    Thread& from = *running;
    from.state = state;
    from.site = site;
    // The lane that run_warp would run next goes on at once: one switch in place of two.
    const unsigned last = reverse ? 0 : LANES - 1;
    for (unsigned next = threadIdx.x; next % LANES != last;) {
        next = reverse ? next - 1 : next + 1;
        if (threads[next].state == State::Ready) {
            running = &threads[next];
            threadIdx.x = next;
            return hand_over(from.fibre, running->fibre);
        }
    }
    hand_over(from.fibre, scheduler);
}

void entry() {
    kernel->body(params);
    for (;;) {
        wait(State::Left, Site{"", 0});
    }
}

void run(unsigned i) {
    running = &threads[i];
    threadIdx.x = i;
    hand_over(scheduler, running->fibre);
    running = nullptr;
}

// The i-th of `count` in the order of this launch.
unsigned ordered(unsigned i, unsigned count) {
    return reverse ? count - 1 - i : i;
}

// Run a warp until all its lanes wait for the block or have left.
void run_warp(unsigned warp) {
    const unsigned first = warp * LANES;
    for (;;) {
        for (unsigned i = 0; i < LANES; i++) {
            const unsigned thread = first + ordered(i, LANES);
            if (threads[thread].state == State::Ready) {
                run(thread);
                if (failed) {
                    return;
                }
            }
        }
        const Thread* waiting = nullptr;
        for (unsigned i = first; i < first + LANES && !waiting; i++) {
            waiting = threads[i].state == State::AtExchange ? &threads[i] : nullptr;
        }
        if (!waiting) {
            return;
        }
        for (unsigned i = first; i < first + LANES; i++) {
            if (threads[i].state != State::AtExchange || !same(threads[i].site, waiting->site)) {
                threadIdx.x = unsigned(waiting - threads);
                return set_message("waits for its warp at " + text(waiting->site) + ", but thread " +
                                   std::to_string(i) + " " + text(threads[i]));
            }
        }
        for (unsigned i = first; i < first + LANES; i++) {
            threads[i].state = State::Ready;
        }
    }
}

// After all warps wait: let them pass the barrier, or fail. False when the block is done.
bool pass_barrier(unsigned count) {
    const Thread* waiting = nullptr;
    for (unsigned i = 0; i < count && !waiting; i++) {
        waiting = threads[i].state == State::AtBarrier ? &threads[i] : nullptr;
    }
    if (!waiting) {
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        if (threads[i].state != State::AtBarrier || !same(threads[i].site, waiting->site)) {
            threadIdx.x = unsigned(waiting - threads);
            set_message("waits at the barrier " + text(waiting->site) + ", but thread " + std::to_string(i) + " " +
                        text(threads[i]));
            return false;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        threads[i].state = State::Ready;
    }
    return true;
}

void run_block() {
    const unsigned count = blockDim.x;
    blocks_begun++;
    static_bytes = 0;
    poison(dynamic, dynamic_bytes + GUARD_BYTES);
    for (unsigned i = 0; i < count; i++) {
        prepare(threads[i].fibre, stacks + i * STACK_BYTES, STACK_BYTES, entry);
        threads[i].state = State::Ready;
        threads[i].turn = 0;
    }
    do {
        for (unsigned i = 0; i < count / LANES; i++) {
            run_warp(ordered(i, count / LANES));
            if (failed) {
                return;
            }
        }
    } while (pass_barrier(count));
    for (size_t i = 0; i < GUARD_BYTES && !failed; i++) {
        if (dynamic[dynamic_bytes + i] != 0xff) {
            threadIdx.x = 0;
            set_message("the block wrote beyond its " + std::to_string(dynamic_bytes) +
                        " bytes of dynamic shared memory");
        }
    }
}

// A kernel's faults become errors: the handler leaves the fibre for good. SA_NODEFER, since it never returns. It stays
// from the first launch on, and hands faults of other threads, which may run another copy of this library, to the
// handler before it.
struct Faults {
    Faults() {
        static const bool installed = install();
        thread = installed;
    }

    ~Faults() {
        thread = false;
    }

    static bool install() {
        struct sigaction action = {};
        action.sa_sigaction = caught;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&action.sa_mask);
        for (int i = 0; i < 3; i++) {
            sigaction(SIGNALS[i], &action, &before[i]);
        }
        return true;
    }

    static void caught(int signal, siginfo_t* info, void* context) {
        if (thread && running) {
            set_message(signal == SIGFPE ? "divides by zero" : "reads or writes where there is no memory");
            hand_over(running->fibre, scheduler);
        }
        int i = 0;
        while (SIGNALS[i] != signal) {
            i++;
        }
        if (before[i].sa_flags & SA_SIGINFO) {
            before[i].sa_sigaction(signal, info, context);
        } else if (before[i].sa_handler != SIG_DFL && before[i].sa_handler != SIG_IGN) {
            before[i].sa_handler(signal);
        } else {
            // It ends the process as it would have, when the instruction runs again.
            ::signal(signal, SIG_DFL);
        }
    }

    static constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGFPE};
    // The handlers before.
    static struct sigaction before[3];
    // Whether this thread is the one that runs the launch.
    static thread_local bool thread;
};
struct sigaction Faults::before[3];
thread_local bool Faults::thread = false;

const Kernel* find(const char* name) {
    const Kernel* k = kernels;
    while (k && strcmp(k->name, name) != 0) {
        k = k->next;
    }
    return k;
}

// Why a launch is impossible; null if it is not.
std::string refused(const char* name, const unsigned grid[3], const unsigned block[3], size_t shared_bytes) {
    if (!kernel) {
        return std::string("no kernel is named ") + name;
    }
    if (block[0] != kernel->threads || block[1] != 1 || block[2] != 1) {
        return std::string("kernel ") + name + ": launched with blocks of (" + std::to_string(block[0]) + ", " +
               std::to_string(block[1]) + ", " + std::to_string(block[2]) + ") threads, declared with " +
               std::to_string(kernel->threads);
    }
    if (block[0] % LANES != 0 || block[0] > MAX_THREADS) {
        return std::string("kernel ") + name + ": a block is whole warps, at most 1024 threads";
    }
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) {
        return std::string("kernel ") + name + ": no card takes a grid of (" + std::to_string(grid[0]) + ", " +
               std::to_string(grid[1]) + ", " + std::to_string(grid[2]) + ")";
    }
    if (shared_bytes > DYNAMIC_SHARED) {
        return std::string("kernel ") + name + ": " + std::to_string(shared_bytes) +
               " bytes of dynamic shared memory are more than any card has";
    }
    return "";
}

// Copy `from` to `to`, cut to `len` bytes with the final zero.
void copy_text(const std::string& from, char* to, unsigned long len) {
    if (to && len > 0) {
        const size_t n = from.size() < len - 1 ? from.size() : len - 1;
        memcpy(to, from.data(), n);
        to[n] = 0;
    }
}

}  // namespace

uint64_t blocks_begun = 0;

Kernel::Kernel(const char* name, unsigned params_size, unsigned threads, void (*body)(const void*))
    : name(name), params_size(params_size), threads(threads), body(body), next(kernels) {
    kernels = this;
}

void fail(const char* format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    set_message(text);
    for (;;) {
        hand_over(running->fibre, scheduler);
    }
}

bool without(Site site) {
    bool known = false;
    for (size_t i = 0; i < sites.size() && !known; i++) {
        known = same(sites[i], site);
    }
    if (!known) {
        sites.push_back(site);
    }
    return !passed_over.empty() && passed_over == text(site);
}

void barrier(Site site) {
    if (!without(site)) {
        wait(State::AtBarrier, site);
    }
}

const Given& exchange(const void* bytes, unsigned count, Site site) {
    const unsigned warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    Given& slots = given[warp][running->turn];
    running->turn ^= 1;
    // Nearly all are one word.
    if (count == 4) {
        memcpy(slots.bytes[lane], bytes, 4);
    } else {
        memcpy(slots.bytes[lane], bytes, count);
    }
    wait(State::AtExchange, site);
    return slots;
}

void count_shared(size_t bytes) {
    static_bytes += bytes;
    if (static_bytes > STATIC_SHARED) {
        fail("%zu bytes of static shared memory are more than the %u that a block may have", static_bytes,
             STATIC_SHARED);
    }
}

unsigned char* dynamic_shared() {
    return dynamic;
}

}  // namespace emulator

using namespace emulator;

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Run a kernel. 0, or 1 with the reason in `error`, which is cut to `error_len` bytes. With `backwards`, threads and
// warps run in reverse.
EXPORTED int emulate(const char* name, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                       const void* given_params, int backwards, char* error, unsigned long error_len) {
    kernel = find(name);
    message = refused(name, grid, block, shared_bytes);
    if (!message.empty()) {
        copy_text(message, error, error_len);
        return 1;
    }
    if (!stacks) {
        void* memory = mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            copy_text("no memory for the stacks of threads", error, error_len);
            return 1;
        }
        stacks = static_cast<unsigned char*>(memory);
    }
    // A copy, because bytes from outside may lie anywhere.
    std::vector<uint64_t> aligned((kernel->params_size + 7) / 8);
    memcpy(aligned.data(), given_params, kernel->params_size);
    params = aligned.data();
    failed = false;
    sites.clear();
    dynamic_bytes = shared_bytes;
    reverse = backwards != 0;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], 1, 1};
    const Faults faults;
    for (unsigned z = 0; z < grid[2] && !failed; z++) {
        for (unsigned y = 0; y < grid[1] && !failed; y++) {
            for (unsigned x = 0; x < grid[0] && !failed; x++) {
                blockIdx = {x, y, z};
                threadIdx = {0, 0, 0};
                run_block();
            }
        }
    }
    running = nullptr;
    copy_text(message, error, error_len);
    return failed ? 1 : 0;
}

// The size of a kernel's parameters, or -1 where there is no such kernel.
EXPORTED int emulated_params_size(const char* name) {
    const Kernel* k = find(name);
    return k ? int(k->params_size) : -1;
}

// The names of all kernels, a line each, cut to `len` bytes. Returns the bytes needed, the final zero included.
EXPORTED int emulated_kernels(char* names, unsigned long len) {
    std::string all;
    for (const Kernel* k = kernels; k; k = k->next) {
        all += std::string(k->name) + "\n";
    }
    copy_text(all, names, len);
    return int(all.size() + 1);
}

// Where threads of the last launch waited for each other or for a copy: lines of FILE:LINE, as emulated_kernels.
EXPORTED int emulated_waits(char* waits, unsigned long len) {
    std::string all;
    for (Site site : sites) {
        all += text(site) + "\n";
    }
    copy_text(all, waits, len);
    return int(all.size() + 1);
}

// Skip the wait FILE:LINE in launches from now on; with null or an empty text, none. For tests that show that each wait
// is needed and that its absence is detected.
EXPORTED void emulate_without(const char* wait) {
    passed_over = wait ? wait : "";
}
