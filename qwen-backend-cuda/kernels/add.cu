// add: out += x. A thread takes a value.
#include "kernel.cuh"

#define ADD_THREADS 256

KERNEL(add, Rows, ADD_THREADS, 4) {
    const size_t i = size_t(blockIdx.x) * ADD_THREADS + threadIdx.x;
    if (i < size_t(p.rows) * p.width) {
        p.out[i] += p.x[i];
    }
}
