// Lets a host compiler run the CUDA sources: a block's threads are coroutines on one thread of the host, so that
// __syncthreads() really waits for all of them. Blocks run one after another; blocks and
// threads may run backwards, as nothing may depend on their order.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static

struct Dim {
    unsigned x, y, z;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T>
static inline T atomicAdd(T* target, T value) {
    T old = *target;
    *target = old + value;
    return old;
}
template <typename T>
static inline T atomicMin(T* target, T value) {
    T old = *target;
    if (value < old) *target = value;
    return old;
}
template <typename T>
static inline T atomicMax(T* target, T value) {
    T old = *target;
    if (value > old) *target = value;
    return old;
}
template <typename T>
static inline T atomicOr(T* target, T value) {
    T old = *target;
    *target = old | value;
    return old;
}

namespace shim {
constexpr unsigned MOST = 256;
constexpr std::size_t STACK = 1 << 16;

// Coroutines are made once and go from one block's thread to the next block's. setjmp switches between them, since
// swapcontext makes a system call each time.
static jmp_buf scheduler, coroutines[MOST];
static bool made[MOST], over[MOST];
static void (*body)(void*);
static void* body_data;

static void wait() {
    if (!_setjmp(coroutines[threadIdx.x])) _longjmp(scheduler, 1);
}

static void enter() {
    for (;;) {
        body(body_data);
        over[threadIdx.x] = true;
        wait();
    }
}

static void resume(unsigned thread) {
    if (_setjmp(scheduler)) return;
    threadIdx = {thread, 0, 0};
    if (made[thread]) _longjmp(coroutines[thread], 1);
    made[thread] = true;
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = std::malloc(STACK);
    context.uc_stack.ss_size = STACK;
    makecontext(&context, enter, 0);
    setcontext(&context);
}

template <typename Body>
static void call(void* data) {
    (*static_cast<Body*>(data))();
}

// Threads in turn from one __syncthreads() to the next, backwards where asked.
template <typename Body>
static void launch(unsigned grid, unsigned block, bool backwards, Body run) {
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    body = call<Body>;
    body_data = &run;
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {backwards ? grid - 1 - b : b, 0, 0};
        for (unsigned t = 0; t < block; ++t) over[t] = false;
        for (unsigned left = block; left > 0;) {
            left = 0;
            for (unsigned i = 0; i < block; ++i) {
                unsigned t = backwards ? block - 1 - i : i;
                if (over[t]) continue;
                resume(t);
                left += !over[t];
            }
        }
    }
    body_data = nullptr;
}
}  // namespace shim

#define __syncthreads() shim::wait()
