// The backbone: low-resolution picture to the tables of all per-pixel networks.
#pragma once

#include <cstddef>

#include "network.hpp"
#include "slab_convolution.hpp"
#include "workspace.hpp"

namespace PCSR_ISA {

// Packed weights, immutable, shared among threads; and the memory that calls leave for the next.
class Backbone {
   public:
    virtual ~Backbone() = default;

    void run(const float* lr, int h, int w, float* tables, int threads) const {
        const Workspaces::Lease workspace(workspaces_);
        run_passes(lr, h, w, tables, threads, *workspace);
    }

    // Of the workspace of such a call.
    std::size_t working_floats(int h, int w, int threads) const {
        Workspace counted(Memory::kCounted);
        run_passes(nullptr, h, w, nullptr, threads, counted);
        return counted.planes.floats() + counted.threads.floats();
    }

   private:
    virtual void run_passes(const float* lr, int h, int w, float* tables, int threads, Workspace& workspace) const = 0;

    mutable Workspaces workspaces_;
};

// Throws pcsr::NoKernels for a network that there are none for, std::invalid_argument for one that contradicts itself.
Backbone* make_backbone(const pcsr::NetworkDescription& network, Form form = Form::kWinograd);

// lr: (3, h, w), 0 to 1 nominal; tables: (h, w, row), the padding zero. The same bytes for any number of threads.
// Throws std::bad_alloc.
void run_backbone(const Backbone& backbone, const float* lr, int h, int w, float* tables, int threads);

// Bytes that such a call takes, and that stay for the next; what it is given is not among them.
std::size_t working_bytes(const Backbone& backbone, int h, int w, int threads);

void free_backbone(Backbone* backbone);

}  // namespace PCSR_ISA
