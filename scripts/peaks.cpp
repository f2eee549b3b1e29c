// Prints what peaks.py reads: the instruction set, GFLOP/s and GB/s, for as many threads as the argument says.
//
// Compiled for the processor that it runs on.
#include "peaks.hpp"

#include <cstdio>
#include <cstdlib>

#if defined(__AVX512F__)
#define INSTRUCTION_SET "avx512"
#define VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define INSTRUCTION_SET "avx2"
#define VECTOR_BYTES 32
#else
#define INSTRUCTION_SET "baseline"
#define VECTOR_BYTES 16
#endif

typedef float Vec __attribute__((vector_size(VECTOR_BYTES)));

int main(int count, char** arguments) {
    const int threads = count == 2 ? std::atoi(arguments[1]) : 0;
    if (threads < 1) return 2;
    const double operations = peaks::operations<Vec>(threads, 15);
    const double bytes = peaks::copied_bytes(threads, 5);
    std::printf("%s %.6g %.6g\n", INSTRUCTION_SET, operations / 1e9, bytes / 1e9);
}
