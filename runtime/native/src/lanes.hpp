// Moving floats among the lanes of vectors, and functions on all lanes that no operator does.
#pragma once

#include "simd.hpp"

namespace PCSR_ISA {

#if PCSR_LANES == 16
// Lane l of the result is lane index[l] of the values.
PCSR_INLINE Vec permute(Vec values, Mask index) { return (Vec)_mm512_permutexvar_ps((__m512i)index, (__m512)values); }

// Lanes of both in turn: the lower halves, the upper halves.
PCSR_INLINE Vec interleave_low(Vec a, Vec b) {
    const Mask index = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    return (Vec)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
}
PCSR_INLINE Vec interleave_high(Vec a, Vec b) {
    const Mask index = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Vec)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
}
#elif PCSR_LANES == 8
PCSR_INLINE Vec permute(Vec values, Mask index) { return (Vec)_mm256_permutevar8x32_ps((__m256)values, (__m256i)index); }

PCSR_INLINE Vec interleave_low(Vec a, Vec b) {
    return (Vec)_mm256_permute2f128_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b), 0x20);
}
PCSR_INLINE Vec interleave_high(Vec a, Vec b) {
    return (Vec)_mm256_permute2f128_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b), 0x31);
}
#endif

// A square of as many vectors as a vector has lanes becomes its transpose: a perfect shuffle for each bit of the index.
PCSR_INLINE void transpose(Vec (&rows)[kLanes]) {
#if PCSR_LANES > 1
    PCSR_UNROLL
    for (int bit = 1; bit < kLanes; bit *= 2) {
        Vec shuffled[kLanes];
        PCSR_UNROLL
        for (int i = 0; i < kLanes / 2; ++i) {
            shuffled[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
            shuffled[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
        }
        PCSR_UNROLL
        for (int i = 0; i < kLanes; ++i) rows[i] = shuffled[i];
    }
#else
    (void)rows;
#endif
}

PCSR_INLINE Vec maximum(Vec a, Vec b) { return select(a > b, a, b); }
PCSR_INLINE Vec minimum(Vec a, Vec b) { return select(a < b, a, b); }

// e to the x, to about 1e-7 of its value; x is taken as at least -87 and at most 88, where floats end.
PCSR_INLINE Vec exponential(Vec x) {
    x = minimum(maximum(x, broadcast(-87.0f)), broadcast(88.0f));
#if PCSR_LANES > 1
    // x = n ln 2 + r. Adding 1.5 * 2^23 leaves n in the lowest bits; ln 2 in two parts keeps r exact.
    const Vec shift = broadcast(12582912.0f);
    const Vec shifted = multiply_add(x, broadcast(1.44269504f), shift);
    const Vec n = shifted - shift;
    Vec r = multiply_add(n, broadcast(-0.693359375f), x);
    r = multiply_add(n, broadcast(2.12194440e-4f), r);
    // Minimax on half a ln 2 to both sides of 0 (Cephes).
    Vec p = broadcast(1.9875691500e-4f);
    p = multiply_add(p, r, broadcast(1.3981999507e-3f));
    p = multiply_add(p, r, broadcast(8.3334519073e-3f));
    p = multiply_add(p, r, broadcast(4.1665795894e-2f));
    p = multiply_add(p, r, broadcast(1.6666665459e-1f));
    p = multiply_add(p, r, broadcast(5.0000001201e-1f));
    p = multiply_add(p, r * r, r + broadcast(1.0f));
    const Mask power = (Mask)((((Mask)shifted - (Mask)shift) + 127) << 23);
    return p * (Vec)power;
#else
    return std::exp(x);
#endif
}

// Whether any lane is not 0; NaN is not.
PCSR_INLINE bool any_not_zero(Vec values) {
    float lanes[kLanes];
    std::memcpy(lanes, &values, sizeof lanes);
    bool found = false;
    for (int i = 0; i < kLanes; ++i) found |= !(lanes[i] == 0.0f);
    return found;
}

}  // namespace PCSR_ISA
