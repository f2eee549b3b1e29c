// The transforms of Winograd's F(4x4, 3x3): Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016).
//
// A tile of 6x6 inputs gives 4x4 outputs by 36 multiplications of each input with each output, where the convolution as
// it is written takes 144. Each lane has a tile of its own. The transforms are in two directions; the first is done for
// a few frequencies at a time and all that the second needs of them, so that everything stays in registers.
#pragma once

#include <cstddef>

#include "activation.hpp"
#include "simd.hpp"

namespace PCSR_ISA {

constexpr int kTileOutputs = 4;
constexpr int kTileInputs = 6;
constexpr int kFrequencies = kTileInputs * kTileInputs;

// Columns of a kernel to frequencies.
constexpr double kKernelTransform[kTileInputs][3] = {
    {1.0 / 4, 0, 0},           {-1.0 / 6, -1.0 / 6, -1.0 / 6}, {-1.0 / 6, 1.0 / 6, -1.0 / 6},
    {1.0 / 24, 1.0 / 12, 1.0 / 6}, {1.0 / 24, -1.0 / 12, 1.0 / 6}, {0, 0, 1},
};

PCSR_INLINE Vec times_add(float factor, Vec value, Vec sum) { return multiply_add(broadcast(factor), value, sum); }

// Six inputs to their six frequencies, written `stride` floats apart.
PCSR_INLINE void store_frequencies(const Vec (&d)[kTileInputs], float* to, std::size_t stride) {
    store(to, times_add(4, d[0], times_add(-5, d[2], d[4])));
    const Vec even = times_add(-4, d[2], d[4]);
    const Vec odd = times_add(-4, d[1], d[3]);
    store(to + stride, even + odd);
    store(to + 2 * stride, even - odd);
    const Vec even2 = d[4] - d[2];
    const Vec odd2 = d[3] - d[1];
    store(to + 3 * stride, times_add(2, odd2, even2));
    store(to + 4 * stride, times_add(-2, odd2, even2));
    store(to + 5 * stride, times_add(4, d[1], times_add(-5, d[3], d[5])));
}

// Tiles' inputs, row i and column j at rows[i] + offsets[j], to frequencies (6 rows, 6 columns), `stride` floats apart.
PCSR_INLINE void transform_input(const float* const (&rows)[kTileInputs], const int (&offsets)[kTileInputs], float* to,
                                 std::size_t stride) {
    const std::size_t down = kTileInputs * stride;
    Vec sum[kTileInputs], difference[kTileInputs];
    PCSR_UNROLL
    for (int j = 0; j < kTileInputs; ++j) {
        const int at = offsets[j];
        sum[j] = times_add(4, load(rows[0] + at), times_add(-5, load(rows[2] + at), load(rows[4] + at)));
    }
    store_frequencies(sum, to, stride);
    PCSR_UNROLL
    for (int j = 0; j < kTileInputs; ++j) {
        const int at = offsets[j];
        const Vec even = times_add(-4, load(rows[2] + at), load(rows[4] + at));
        const Vec odd = times_add(-4, load(rows[1] + at), load(rows[3] + at));
        sum[j] = even + odd;
        difference[j] = even - odd;
    }
    store_frequencies(sum, to + down, stride);
    store_frequencies(difference, to + 2 * down, stride);
    PCSR_UNROLL
    for (int j = 0; j < kTileInputs; ++j) {
        const int at = offsets[j];
        const Vec even = load(rows[4] + at) - load(rows[2] + at);
        const Vec odd = load(rows[3] + at) - load(rows[1] + at);
        sum[j] = times_add(2, odd, even);
        difference[j] = times_add(-2, odd, even);
    }
    store_frequencies(sum, to + 3 * down, stride);
    store_frequencies(difference, to + 4 * down, stride);
    PCSR_UNROLL
    for (int j = 0; j < kTileInputs; ++j) {
        const int at = offsets[j];
        sum[j] = times_add(4, load(rows[1] + at), times_add(-5, load(rows[3] + at), load(rows[5] + at)));
    }
    store_frequencies(sum, to + 5 * down, stride);
}

// Of one row of frequencies two of the four columns of outputs: 0 and 2, or 1 and 3.
template <bool Odd>
PCSR_INLINE void two_columns(const float* from, std::size_t stride, Vec (&columns)[2]) {
    const Vec one = load(from + stride), two = load(from + 2 * stride);
    const Vec three = load(from + 3 * stride), four = load(from + 4 * stride);
    if (Odd) {
        const Vec near = one - two, far = three - four;
        columns[0] = times_add(2, far, near);
        columns[1] = times_add(8, far, near + load(from + 5 * stride));
    } else {
        const Vec near = one + two, far = three + four;
        columns[0] = load(from) + near + far;
        columns[1] = times_add(4, far, near);
    }
}

template <bool Odd>
PCSR_INLINE void transform_two_columns(const float* from, std::size_t stride, Vec bias, Activation activation,
                                       float* const (&rows)[kTileOutputs], std::size_t at, int tiles) {
    const std::size_t down = kTileInputs * stride;
    Vec one[2], two[2], three[2], four[2], end[2];
    two_columns<Odd>(from + down, stride, one);
    two_columns<Odd>(from + 2 * down, stride, two);
    two_columns<Odd>(from + 3 * down, stride, three);
    two_columns<Odd>(from + 4 * down, stride, four);
    PCSR_UNROLL
    for (int j = 0; j < 2; ++j) {
        const Vec sum = one[j] + two[j] + bias, difference = one[j] - two[j] + bias;
        const Vec far_sum = three[j] + four[j], far_difference = three[j] - four[j];
        one[j] = difference;
        two[j] = sum + far_sum;
        three[j] = far_difference;
        const std::size_t column = at + static_cast<std::size_t>(2 * j + Odd) * tiles;
        store(rows[1] + column, activate(times_add(2, far_difference, difference), activation));
        store(rows[2] + column, activate(times_add(4, far_sum, sum), activation));
    }
    two_columns<Odd>(from, stride, end);
    PCSR_UNROLL
    for (int j = 0; j < 2; ++j) {
        const std::size_t column = at + static_cast<std::size_t>(2 * j + Odd) * tiles;
        store(rows[0] + column, activate(two[j] + end[j], activation));
    }
    two_columns<Odd>(from + 5 * down, stride, end);
    PCSR_UNROLL
    for (int j = 0; j < 2; ++j) {
        const std::size_t column = at + static_cast<std::size_t>(2 * j + Odd) * tiles;
        store(rows[3] + column, activate(times_add(8, three[j], one[j] + end[j]), activation));
    }
}

// Frequencies to tiles' outputs, column j of row i written to rows[i] + at + j * tiles.
PCSR_INLINE void transform_output(const float* from, std::size_t stride, Vec bias, Activation activation,
                                  float* const (&rows)[kTileOutputs], std::size_t at, int tiles) {
    transform_two_columns<false>(from, stride, bias, activation, rows, at, tiles);
    transform_two_columns<true>(from, stride, bias, activation, rows, at, tiles);
}

}  // namespace PCSR_ISA
