// The per-pixel networks: the dense form, on every pixel of a block, and the sparse one, on those routed there.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"
#include "network.hpp"
#include "perceptron.hpp"

namespace PCSR_ISA {

class Heads {
   public:
    explicit Heads(const pcsr::NetworkDescription& network);

    // Of the classifier: 1 for two classes, else as many as there are.
    int outputs() const { return parts_[0].head.outputs; }
    int classes() const { return static_cast<int>(parts_.size()) - 1; }

    bool probabilities(const pcsr::Tables&, const pcsr::Place&, const pcsr::Region&, float* out) const;
    bool residuals(const pcsr::Tables&, const pcsr::Place&, const pcsr::Region&, const std::uint8_t* classes, float* out) const;

   private:
    struct Part {
        pcsr::Head head;
        Perceptron layers;
    };

    // What the dense form does with the outputs of a group of pixels.
    enum class Ending { plain, sigmoid, softmax };

    // classes: null, or those of the region: a group of pixels without class 0 is left as it is.
    bool dense(std::size_t number, Ending ending, const pcsr::Tables&, const pcsr::Place&, const pcsr::Region&,
               const std::uint8_t* classes, float* out) const;
    bool sparse(std::size_t number, const pcsr::Tables&, const pcsr::Place&, const pcsr::Region&,
                const std::uint8_t* classes, float* out) const;

    std::vector<Part> parts_;
    int row_;
};

}  // namespace PCSR_ISA
