// What follows a convolution.
#pragma once

#include "simd.hpp"

namespace PCSR_ISA {

struct Activation {
    enum Kind { kNone, kRelu, kLeaky } kind;
    float slope;  // of kLeaky, below zero
};

constexpr Activation kIdentity{Activation::kNone, 1.0f};
constexpr Activation kRectified{Activation::kRelu, 0.0f};
constexpr Activation leaky(float slope) { return Activation{Activation::kLeaky, slope}; }

PCSR_INLINE Vec activate(Vec value, Activation activation) {
    switch (activation.kind) {
        case Activation::kRelu:
            return relu(value);
        case Activation::kLeaky:
            return select(value > broadcast(0.0f), value, value * broadcast(activation.slope));
        default:
            return value;
    }
}

}  // namespace PCSR_ISA
