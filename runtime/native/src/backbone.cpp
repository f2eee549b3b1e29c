#include "backbone.hpp"

#include <algorithm>
#include <memory>

#include "backbone_carn.hpp"
#include "backbone_fsrcnn.hpp"
#include "backbone_srresnet.hpp"

namespace PCSR_ISA {

Backbone* make_backbone(const pcsr::NetworkDescription& network, Form form) {
    if (network.backbone == "carn") return std::make_unique<Carn>(network, form).release();
    if (network.backbone == "fsrcnn") return std::make_unique<Fsrcnn>(network, form).release();
    if (network.backbone == "srresnet") return std::make_unique<SrResnet>(network, form).release();
    throw pcsr::NoKernels("there are no native kernels for the backbone " + network.backbone);
}

void run_backbone(const Backbone& backbone, const float* lr, int h, int w, float* tables, int threads) {
    if (h > 0 && w > 0) backbone.run(lr, h, w, tables, std::max(threads, 1));
}

std::size_t working_bytes(const Backbone& backbone, int h, int w, int threads) {
    return h > 0 && w > 0 ? sizeof(float) * backbone.working_floats(h, w, std::max(threads, 1)) : 0;
}

void free_backbone(Backbone* backbone) { delete backbone; }

}  // namespace PCSR_ISA
