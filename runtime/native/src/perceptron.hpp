// The layers of a per-pixel network behind its first, on a group of pixels at once: lanes are pixels.
//
// Weights are broadcast, so that layers of any size are computed without padding, and dense and routed pixels take the
// same road. Each pixel's sums are added in one order whatever its group: blocks and threads change no byte.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "network.hpp"
#include "simd.hpp"

namespace PCSR_ISA {

// Vectors of pixels and outputs that are summed up at once: as many as there are registers for.
constexpr int kVectors = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 8;
constexpr int kOutputs = 5;
// Pixels of a group. Activations are (channels, kPixels).
constexpr int kPixels = kVectors * kLanes;

class Perceptron {
   public:
    // Takes what `<head>.layer<i>` says. Throws std::invalid_argument where the weights are not as the head says.
    Perceptron(const pcsr::NetworkDescription& network, const pcsr::Head& head);

    // Whether there are layers behind the first: if so, its sums go through ReLU before they are given.
    bool hidden() const { return !layers_.empty(); }

    // Channels of the widest layer, the first included: what `front` and `back` are to have room for.
    int widest() const { return widest_; }

    // Run all layers on `front`; either buffer may be overwritten. Returns the one that has the outputs.
    float* run(float* front, float* back) const;

   private:
    struct Layer {
        int inputs, outputs;
        // kOutputs outputs after another, of each its bias and (inputs, outputs) weights.
        std::vector<float> packed;
    };

    std::vector<Layer> layers_;
    int widest_;
};

}  // namespace PCSR_ISA
