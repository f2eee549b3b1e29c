// The backbone: low-resolution picture to the tables of all per-pixel networks.
#pragma once

#include "network.hpp"
#include "slab_convolution.hpp"

namespace PCSR_ISA {

// Packed weights, immutable, shared among threads.
struct Backbone {
    virtual ~Backbone() = default;
    virtual void run(const float* lr, int h, int w, float* tables, int threads) const = 0;
};

// Throws pcsr::NoKernels for a network that there are none for, std::invalid_argument for one that contradicts itself.
Backbone* make_backbone(const pcsr::NetworkDescription& network, Form form = Form::kWinograd);

// lr: (3, h, w), 0 to 1 nominal; tables: (h, w, row), the padding zero. The same bytes for any number of threads.
// Throws std::bad_alloc.
void run_backbone(const Backbone& backbone, const float* lr, int h, int w, float* tables, int threads);

void free_backbone(Backbone* backbone);

}  // namespace PCSR_ISA
