// SRResNet: a convolution, then residual units of two convolutions among all channels; a pass each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "backbone.hpp"
#include "entry.hpp"
#include "pass.hpp"
#include "planes.hpp"
#include "slab_convolution.hpp"
#include "table_layer.hpp"

namespace PCSR_ISA {

struct TrunkUnit {
    TrunkUnit(const pcsr::NetworkDescription& network, const std::string& name, Form form)
        : conv1(dense(network, name + ".conv1", form)), conv2(dense(network, name + ".conv2", form)) {}

    static SlabConvolution dense(const pcsr::NetworkDescription& network, const std::string& name, Form form) {
        const int width = network.width;
        return SlabConvolution(form, network.weight(name + ".weight", {width, width, 3, 3}),
                               network.weight(name + ".bias", {width}), width, width, 1);
    }

    SlabConvolution conv1, conv2;
};

class TrunkPass {
   public:
    static constexpr int kAhead = 2;  // the two convolutions

    int width;
    const TrunkUnit& trunk;
    const Entry* entry;             // of the first pass, which has no input
    Picture picture;
    Plane in, out;                  // the last pass has no output
    const TableLayer* table_layer;  // of the last pass
    float* tables;

    struct Rows {
        Rows(Arena& arena, const TrunkPass& pass, int tiles)
            : zeros(arena.take(row_floats(pass, tiles))),
              entry(arena, 1, tiles),
              x(arena, kSlab + kAhead, pass.width, tiles),
              conv1(arena, kSlab + 2, pass.width, tiles),
              conv2(arena, kSlab, pass.width, tiles),
              scratch(arena.take(std::max(pass.trunk.conv1.scratch(), pass.trunk.conv2.scratch()))) {}

        static std::size_t row_floats(const TrunkPass& pass, int tiles) {
            return pass.width * channel_floats(tiles);
        }

        float* zeros;
        EntryRows entry;
        Ring x, conv1, conv2;
        float* scratch;
    };

    void unit(const Strip& strip, Rows& rows) const {
        std::fill_n(rows.zeros, Rows::row_floats(*this, strip.tiles), 0.0f);
        const int first = strip.y0 - lead(kAhead);
        if (entry) rows.entry.begin(first + kAhead);
        for (int y = first; y < strip.y1; y += kSlab) {
            source(strip, rows, y + kAhead);
            convolve(strip, trunk.conv1, rows.x, rows.zeros, y + 1, 1, kRectified, rows.conv1, rows.scratch);
            convolve(strip, trunk.conv2, rows.conv1, rows.zeros, y, 0, kIdentity, rows.conv2, rows.scratch);
            for (int at = std::max(y, strip.y0); at < std::min(y + kSlab, strip.y1); ++at) give(strip, rows, at);
        }
    }

   private:
    void source(const Strip& strip, Rows& rows, int y) const {
        float* to[kSlab];
        rows.x.slab(y, to);
        if (entry) {
            rows.entry.slab(*entry, picture, strip, y, to);
        } else {
            load_slab(strip, in, y, to);
        }
    }

    void give(const Strip& strip, Rows& rows, int y) const {
        const float* residual = rows.conv2.row(y);
        const float* x = rows.x.row(y);
        float* sum = table_layer ? rows.conv2.row(y) : out.row(strip, y);
        const std::size_t floats = Rows::row_floats(*this, strip.tiles);
        for (std::size_t i = 0; i < floats; i += kLanes) store(sum + i, load(residual + i) + load(x + i));
        if (table_layer) {
            table_layer->row(strip, sum, y, tables);
        } else {
            hand_over(strip, out, y);
        }
    }
};

class SrResnet final : public Backbone {
   public:
    SrResnet(const pcsr::NetworkDescription& network, Form form)
        : width_(network.width),
          entry_(network, "backbone.entry", 3, leaky(kSlope)),
          table_layer_(network) {
        for (int i = 0; i < network.option("nb"); ++i) {
            trunk_.emplace_back(network, "backbone.unit" + std::to_string(i), form);
        }
        if (trunk_.empty()) throw pcsr::NoKernels("there are no native kernels for a trunk of no units");
    }

   private:
    void run_passes(const float* lr, int h, int w, float* tables, int threads, Workspace& workspace) const override {
        const Cut cut(h, w, TrunkPass::kAhead);
        Plane planes[2];
        for (int i = 0; i < 2 && trunk_.size() > 1; ++i) {
            planes[i] = Plane{workspace.planes.get(i, Plane::floats(cut, width_)), &cut, width_};
        }
        for (std::size_t i = 0; i < trunk_.size(); ++i) {
            const bool last = i + 1 == trunk_.size();
            const TrunkPass pass{width_,
                                 trunk_[i],
                                 i == 0 ? &entry_ : nullptr,
                                 entry_.picture(lr),
                                 planes[(i + 1) % 2],
                                 planes[i % 2],
                                 last ? &table_layer_ : nullptr,
                                 tables};
            run_pass(pass, cut, workspace, threads);
        }
    }

    static constexpr float kSlope = 0.1f;  // of the activation behind the entry, below zero

    int width_;
    Entry entry_;
    std::vector<TrunkUnit> trunk_;
    TableLayer table_layer_;
};

}  // namespace PCSR_ISA
