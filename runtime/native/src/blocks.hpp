// Output channels are computed some at a time, as many as there are registers to sum them in.
#pragma once

#include <array>
#include <utility>

#include "simd.hpp"

namespace PCSR_ISA {

// Registers of an instruction set: of them the sums, one or two vectors of the input, and where the weight is no operand
// in memory (before AVX-512) one for it. Chosen by the clock.
#if PCSR_LANES == 16
constexpr int kOutputsOfOneVector = 16;
constexpr int kOutputsOfTwoVectors = 13;
#elif PCSR_LANES == 8
constexpr int kOutputsOfOneVector = 13;
constexpr int kOutputsOfTwoVectors = 6;
#else
constexpr int kOutputsOfOneVector = 8;
constexpr int kOutputsOfTwoVectors = 4;
#endif

// So many outputs in blocks of nearly equal size: block b has those from begin(b) to begin(b + 1).
struct Blocks {
    int outputs, count;

    Blocks(int outputs, int most) : outputs(outputs), count((outputs + most - 1) / most) {}
    int begin(int block) const { return static_cast<int>(static_cast<long>(outputs) * block / count); }
    int size(int block) const { return begin(block + 1) - begin(block); }
};

// The functions Kernel<1>::run … Kernel<most>::run; that for a block of n is at n - 1.
template <template <int> class Kernel, int... Sizes>
constexpr auto kernel_table(std::integer_sequence<int, Sizes...>) {
    return std::array{&Kernel<Sizes + 1>::run...};
}
template <template <int> class Kernel, int Most>
constexpr auto kernel_table() {
    return kernel_table<Kernel>(std::make_integer_sequence<int, Most>{});
}

}  // namespace PCSR_ISA
