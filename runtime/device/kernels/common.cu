// What all kernels share. The sources are plain CUDA C++ without headers, joined in the order of kernels.py, with
// CLASSES defined before them. They are compiled without fused multiply-add: the contract rounds every operation.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Threads of a block, in every launch.
#define THREADS 256
// Numbers of thresholds.
#define STEPS (CLASSES - 1)

__device__ inline i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline i64 thread_count() { return (i64)gridDim.x * blockDim.x; }

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }
__device__ inline bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// Unsigned integers in the order of the floats.
__device__ inline u32 key_of(float value) {
    u32 bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float value_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The smallest float32 that is no less.
__device__ inline float rounded_up(double value) {
    float nearest = (float)value;
    return (double)nearest >= value ? nearest : nextafterf(nearest, infinity());
}

// Levels of a picture as floats, 0 to 1 nominal: one division.
__device__ inline float level(u8 value) { return (float)value / 255.0f; }
__device__ inline float level(u16 value) { return (float)value / 65535.0f; }
__device__ inline float level(float value) { return value; }

// Adds the values of all threads of a block to a number in memory. Integers, so their order is of no matter.
__device__ inline void add_over_block(u64 value, u64* target) {
    __shared__ u64 part[THREADS];
    part[threadIdx.x] = value;
    __syncthreads();
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicAdd(target, part[0]);
}
