// The switch between fibres; see fibre.h.
#include "fibre.h"

#include <cstring>

#if defined(__x86_64__)

extern "C" void emulator_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".type emulator_switch, @function\n"
    "emulator_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    popq %rcx\n"
    // Not `ret`: CPUs expect it to return to the last call, which was on another stack.
    "    jmpq *%rcx\n"
    ".size emulator_switch, .-emulator_switch\n");

// What emulator_switch pops: six registers, where it returns to; above that a word for the alignment of calls.
static const size_t SAVED_WORDS = 8, ENTRY_WORD = 6;

#elif defined(__aarch64__)

extern "C" void emulator_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".type emulator_switch, %function\n"
    "emulator_switch:\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp, #0]\n"
    "    stp x21, x22, [sp, #16]\n"
    "    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n"
    "    stp x27, x28, [sp, #64]\n"
    "    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n"
    "    stp d10, d11, [sp, #112]\n"
    "    stp d12, d13, [sp, #128]\n"
    "    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n"
    "    str x9, [x0]\n"
    "    mov sp, x1\n"
    "    ldp x19, x20, [sp, #0]\n"
    "    ldp x21, x22, [sp, #16]\n"
    "    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n"
    "    ldp x27, x28, [sp, #64]\n"
    "    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n"
    "    ldp d10, d11, [sp, #112]\n"
    "    ldp d12, d13, [sp, #128]\n"
    "    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n"
    "    ret\n"
    ".size emulator_switch, .-emulator_switch\n");

// What emulator_switch loads; x30, where it returns to, is the word 11.
static const size_t SAVED_WORDS = 20, ENTRY_WORD = 11;

#endif

namespace emulator {

#if defined(__x86_64__) || defined(__aarch64__)

void prepare(Fibre& fibre, void* stack, size_t bytes, void (*entry)()) {
    void** top = static_cast<void**>(stack) + bytes / sizeof(void*);
    void** frame = top - SAVED_WORDS;
    memset(frame, 0, SAVED_WORDS * sizeof(void*));
    frame[ENTRY_WORD] = reinterpret_cast<void*>(entry);
    fibre.stack_pointer = frame;
}

void hand_over(Fibre& from, Fibre& to) {
    emulator_switch(&from.stack_pointer, to.stack_pointer);
}

#else

void prepare(Fibre& fibre, void* stack, size_t bytes, void (*entry)()) {
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = stack;
    fibre.context.uc_stack.ss_size = bytes;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, entry, 0);
}

void hand_over(Fibre& from, Fibre& to) {
    swapcontext(&from.context, &to.context);
}

#endif

}  // namespace emulator
