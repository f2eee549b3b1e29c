// A vector of floats as wide as the instruction set that this translation unit is compiled for.
//
// Each kernel is one source that is compiled several times, once for each instruction set (see setup.py): PCSR_ISA is
// the namespace that its functions live in, and PCSR_LANES the floats of a vector; with one lane it is plain C++, the
// reference that the others are tested against.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if PCSR_LANES > 1
#include <immintrin.h>
#endif

#ifndef PCSR_ISA
#error "PCSR_ISA is the namespace of the instruction set"
#endif
#ifndef PCSR_LANES
#error "PCSR_LANES is the number of floats in a vector: 1, 8 or 16"
#endif

#define PCSR_INLINE inline __attribute__((always_inline))
#define PCSR_UNROLL _Pragma("GCC unroll 32")

namespace PCSR_ISA {

constexpr int kLanes = PCSR_LANES;

#if PCSR_LANES > 1
typedef float Vec __attribute__((vector_size(4 * PCSR_LANES)));
typedef float VecU __attribute__((vector_size(4 * PCSR_LANES), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * PCSR_LANES)));

PCSR_INLINE Vec broadcast(float value) { return value - Vec{}; }
PCSR_INLINE Vec load(const float* from) { return *reinterpret_cast<const VecU*>(from); }
PCSR_INLINE void store(float* to, Vec value) { *reinterpret_cast<VecU*>(to) = value; }
PCSR_INLINE Vec select(Mask where, Vec yes, Vec no) { return where ? yes : no; }
#else
typedef float Vec;
typedef bool Mask;

PCSR_INLINE Vec broadcast(float value) { return value; }
PCSR_INLINE Vec load(const float* from) { return *from; }
PCSR_INLINE void store(float* to, Vec value) { *to = value; }
PCSR_INLINE Vec select(Mask where, Vec yes, Vec no) { return where ? yes : no; }
#endif

// NaN becomes 0, as with max(0, x) of the instruction sets; a network that gives it is refused elsewhere.
// By instruction where there is one: of a comparison and a choice gcc makes two, by way of scarce mask registers.
#if PCSR_LANES == 16
PCSR_INLINE Vec relu(Vec value) { return (Vec)_mm512_max_ps((__m512)value, _mm512_setzero_ps()); }
#elif PCSR_LANES == 8
PCSR_INLINE Vec relu(Vec value) { return (Vec)_mm256_max_ps((__m256)value, _mm256_setzero_ps()); }
#else
PCSR_INLINE Vec relu(Vec value) { return value > 0.0f ? value : 0.0f; }
#endif

// Compiled to one fused instruction where there is one (-ffp-contract=fast).
PCSR_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) { return a * b + sum; }

}  // namespace PCSR_ISA
