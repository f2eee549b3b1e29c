// From residuals to pixels: bilinear base, refinement, rounding. What compose.py does in NumPy.
#pragma once

#include <cstdint>

#include "engine.hpp"
#include "simd.hpp"

namespace PCSR_ISA {

void finish(const pcsr::Patch& patch, float* residual, const std::uint8_t* classes);

}  // namespace PCSR_ISA
