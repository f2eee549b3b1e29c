// Passes over the difficulties of a picture, for its thresholds. What NumpyPasses of distribution.py does in NumPy.
#pragma once

#include <cstdint>

#include "engine.hpp"
#include "simd.hpp"

namespace PCSR_ISA {

void extremes(const float* values, std::int64_t n, float* found);
void histogram(const float* values, std::int64_t n, const pcsr::Bins& bins, int threads, std::int64_t* counts, double* sums);
void inside(const float* values, std::int64_t n, const pcsr::Bins& bins, int threads, const std::uint8_t* wanted,
            float* found);

}  // namespace PCSR_ISA
