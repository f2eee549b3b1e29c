#include "engine.hpp"

#include <stdexcept>
#include <string>

#include "heads.hpp"
#if __has_include("backbone.hpp")
#include "backbone.hpp"
#define PCSR_BACKBONE 1
#else
#define PCSR_BACKBONE 0
#endif

namespace PCSR_ISA {
namespace {

class Network final : public pcsr::Engine {
   public:
    explicit Network(const pcsr::NetworkDescription& network) : heads_(network) {
#if PCSR_BACKBONE
        try {
            backbone_.reset(make_backbone(network));
        } catch (const std::invalid_argument& error) {
            no_backbone_ = error.what();
        }
#else
        no_backbone_ = "this build computes no backbones";
#endif
    }

    const char* no_backbone() const override { return no_backbone_.c_str(); }

    void tables(const float* lr, int h, int w, float* tables, int threads) const override {
        if (!no_backbone_.empty()) throw std::logic_error(no_backbone_);
#if PCSR_BACKBONE
        run_backbone(*backbone_, lr, h, w, tables, threads);
#else
        (void)lr, (void)h, (void)w, (void)tables, (void)threads;
#endif
    }

    bool probabilities(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Region& region,
                       float* out) const override {
        return heads_.probabilities(tables, place, region, out);
    }

    bool residuals(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Region& region,
                   const std::uint8_t* classes, float* out) const override {
        return heads_.residuals(tables, place, region, classes, out);
    }

   private:
    Heads heads_;
#if PCSR_BACKBONE
    struct Free {
        void operator()(Backbone* backbone) const { free_backbone(backbone); }
    };
    std::unique_ptr<Backbone, Free> backbone_;
#endif
    std::string no_backbone_;
};

}  // namespace

std::unique_ptr<pcsr::Engine> open(const pcsr::NetworkDescription& network) {
    return std::make_unique<Network>(network);
}

}  // namespace PCSR_ISA
