#include "engine.hpp"

#include <stdexcept>
#include <string>

#include "backbone.hpp"
#include "distribution.hpp"
#include "finish.hpp"
#include "heads.hpp"
#include "paint.hpp"
#include "workspace.hpp"

namespace PCSR_ISA {
namespace {

class Network final : public pcsr::Engine {
   public:
    explicit Network(const pcsr::NetworkDescription& network) : heads_(network) {
        try {
            backbone_.reset(make_backbone(network));
        } catch (const pcsr::NoKernels& error) {
            no_backbone_ = error.what();
        }
    }

    const char* no_backbone() const override { return no_backbone_.c_str(); }

    void tables(const float* lr, int h, int w, float* tables, int threads) const override {
        if (!backbone_) throw std::logic_error(no_backbone_);
        run_backbone(*backbone_, lr, h, w, tables, threads);
    }

    std::size_t working_bytes(int h, int w, int threads) const override {
        if (!backbone_) throw std::logic_error(no_backbone_);
        return PCSR_ISA::working_bytes(*backbone_, h, w, threads);
    }

    bool probabilities(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Region& region,
                       float* out) const override {
        return heads_.probabilities(tables, place, region, out);
    }

    bool residuals(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Region& region,
                   const std::uint8_t* classes, float* out) const override {
        return heads_.residuals(tables, place, region, classes, out);
    }

    void finish(const pcsr::Patch& patch, float* residual, const std::uint8_t* classes) const override {
        PCSR_ISA::finish(patch, residual, classes);
    }

    int survey(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Spread& spread, float* out,
               std::int64_t stride, double* seconds) const override {
        return PCSR_ISA::survey(heads_, workspaces_, tables, place, spread, out, stride, seconds);
    }

    int paint(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Patch& patch, const pcsr::Spread& spread,
              const pcsr::Painting& painting) const override {
        return PCSR_ISA::paint(heads_, workspaces_, tables, place, patch, spread, painting);
    }

    void extremes(const float* values, std::int64_t n, float* found) const override {
        PCSR_ISA::extremes(values, n, found);
    }

    void histogram(const float* values, std::int64_t n, const pcsr::Bins& bins, int threads, std::int64_t* counts,
                   double* sums) const override {
        PCSR_ISA::histogram(values, n, bins, threads, counts, sums);
    }

    void inside(const float* values, std::int64_t n, const pcsr::Bins& bins, int threads, const std::uint8_t* wanted,
                float* found) const override {
        PCSR_ISA::inside(values, n, bins, threads, wanted, found);
    }

   private:
    struct Free {
        void operator()(Backbone* backbone) const { free_backbone(backbone); }
    };
    Heads heads_;
    std::unique_ptr<Backbone, Free> backbone_;
    std::string no_backbone_;
    // Of blocks.
    mutable Workspaces workspaces_;
};

}  // namespace

std::unique_ptr<pcsr::Engine> open(const pcsr::NetworkDescription& network) {
    return std::make_unique<Network>(network);
}

}  // namespace PCSR_ISA
