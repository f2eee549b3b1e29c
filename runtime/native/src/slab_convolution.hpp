// A 3x3 convolution of a ring's rows, in either form.
#pragma once

#include <optional>

#include "direct.hpp"
#include "rings.hpp"
#include "strips.hpp"
#include "winograd.hpp"

namespace PCSR_ISA {

// The direct form is the reference.
enum class Form { kWinograd, kDirect };

class SlabConvolution {
   public:
    // weights: (outputs, inputs / groups, 3, 3).
    SlabConvolution(Form form, const float* weights, const float* bias, int inputs, int outputs, int groups)
        : outputs_(outputs) {
        if (form == Form::kDirect) {
            direct_.emplace(weights, bias, inputs, outputs, groups, 3);
        } else {
            winograd_.emplace(weights, bias, inputs, outputs, groups);
        }
    }

    std::size_t scratch() const { return winograd_ ? winograd_->scratch() : 0; }

    // Four rows from y of the picture, of which none need lie within it.
    void slab(const Strip& strip, const float* const (&in)[kSlab + 2], Activation activation,
              float* const (&out)[kSlab], float* scratch) const {
        if (winograd_) {
            winograd_->slab(in, activation, out, strip.tiles, scratch);
        } else {
            for (int i = 0; i < kSlab; ++i) direct_->row({in + i, strip.tiles}, activation, out[i], strip.tiles);
        }
        for (float* row : out) clear_borders(strip, row, outputs_);
    }

   private:
    int outputs_;
    std::optional<Direct> direct_;
    std::optional<Winograd> winograd_;
};

}  // namespace PCSR_ISA
