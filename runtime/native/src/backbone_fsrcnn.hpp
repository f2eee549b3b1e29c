// FSRCNN: a 5x5 convolution, a 1x1 to few channels, some 3x3 among those, a 1x1 back.
//
// All in one pass, unless there are so many 3x3 that neighbouring strips would mostly overlap.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "backbone.hpp"
#include "entry.hpp"
#include "pass.hpp"
#include "planes.hpp"
#include "pointwise.hpp"
#include "slab_convolution.hpp"
#include "table_layer.hpp"

namespace PCSR_ISA {

// A convolution and the PReLU behind it, if there is one.
struct FsrcnnLayer {
    FsrcnnLayer(const pcsr::NetworkDescription& network, int index)
        : name("backbone.layer" + std::to_string(index)),
          activation(network.has(name + ".slope") ? leaky(*network.weight(name + ".slope", {1})) : kIdentity) {}

    Pointwise pointwise(const pcsr::NetworkDescription& network, int inputs, int outputs) const {
        return Pointwise({network.weight(name + ".weight", {outputs, inputs, 1, 1})},
                         network.weight(name + ".bias", {outputs}), inputs, outputs);
    }

    SlabConvolution mapping(const pcsr::NetworkDescription& network, int channels, Form form) const {
        return SlabConvolution(form, network.weight(name + ".weight", {channels, channels, 3, 3}),
                               network.weight(name + ".bias", {channels}), channels, channels, 1);
    }

    std::string name;
    Activation activation;
};

struct MappingLayer {
    SlabConvolution convolution;
    Activation activation;
};

class FsrcnnPass {
   public:
    int width, small;                     // channels of the features, and of the mapping layers
    std::vector<const MappingLayer*> mapping;
    const Entry* entry;                   // with the shrinking convolution, of the first pass
    const Pointwise* shrink;
    Activation shrink_activation;
    Picture picture;
    Plane in, out;                        // of the mapping's channels, where the pass is not the first, not the last
    const Pointwise* expand;              // with the tables, of the last pass
    Activation expand_activation;
    const TableLayer* table_layer;
    float* tables;

    int ahead() const { return static_cast<int>(mapping.size()); }

    struct Rows {
        Rows(Arena& arena, const FsrcnnPass& pass, int tiles)
            : zeros(arena.take(row_floats(pass, tiles))),
              entry(arena, pass.entry ? pass.entry->direct.reach() : 0, tiles),
              features(arena, kSlab, pass.width, tiles) {
            std::size_t floats = 0;
            for (int i = 0; i <= pass.ahead(); ++i) maps.emplace_back(arena, kSlab + 2, pass.small, tiles);
            for (const MappingLayer* layer : pass.mapping) floats = std::max(floats, layer->convolution.scratch());
            scratch = arena.take(floats);
        }

        static std::size_t row_floats(const FsrcnnPass& pass, int tiles) {
            return pass.small * channel_floats(tiles);
        }

        float* zeros;
        EntryRows entry;
        Ring features;           // before the mapping, and after it
        std::vector<Ring> maps;  // before each mapping layer, and after the last
        float* scratch;
    };

    void unit(const Strip& strip, Rows& rows) const {
        std::fill_n(rows.zeros, Rows::row_floats(*this, strip.tiles), 0.0f);
        const int first = strip.y0 - lead(ahead());
        if (entry) rows.entry.begin(first + ahead());
        for (int y = first; y < strip.y1; y += kSlab) {
            source(strip, rows, y + ahead());
            for (int i = 0; i < ahead(); ++i) {
                const int behind = ahead() - 1 - i;  // layers behind this one
                convolve(strip, mapping[i]->convolution, rows.maps[i], rows.zeros, y + behind, behind, mapping[i]->activation,
                         rows.maps[i + 1], rows.scratch);
            }
            for (int at = std::max(y, strip.y0); at < std::min(y + kSlab, strip.y1); ++at) give(strip, rows, at);
        }
    }

   private:
    void source(const Strip& strip, Rows& rows, int y) const {
        float* to[kSlab];
        rows.maps.front().slab(y, to);
        if (entry) {
            float* features[kSlab];
            rows.features.slab(y, features);
            rows.entry.slab(*entry, picture, strip, y, features);
            for (int i = 0; i < kSlab; ++i) {
                if (!strip.has_row(y + i)) continue;
                shrink->row(&features[i], nullptr, shrink_activation, to[i], strip.tiles);
                clear_borders(strip, to[i], small);
            }
            return;
        }
        load_slab(strip, in, y, to);
    }

    void give(const Strip& strip, Rows& rows, int y) const {
        const float* map = rows.maps.back().row(y);
        if (!expand) {
            std::copy_n(map, Rows::row_floats(*this, strip.tiles), out.row(strip, y));
            hand_over(strip, out, y);
            return;
        }
        float* features = rows.features.row(y);
        expand->row(&map, nullptr, expand_activation, features, strip.tiles);
        table_layer->row(strip, features, y, tables);
    }
};

class Fsrcnn final : public Backbone {
   public:
    Fsrcnn(const pcsr::NetworkDescription& network, Form form)
        : width_(network.width),
          small_(network.option("s")),
          entry_(network, "backbone.layer0", 5, FsrcnnLayer(network, 0).activation),
          shrink_layer_(network, 1),
          shrink_(shrink_layer_.pointwise(network, width_, small_)),
          expand_layer_(network, network.option("m") + 2),
          expand_(expand_layer_.pointwise(network, small_, width_)),
          table_layer_(network) {
        for (int i = 0; i < network.option("m"); ++i) {
            const FsrcnnLayer layer(network, i + 2);
            mapping_.push_back(MappingLayer{layer.mapping(network, small_, form), layer.activation});
        }
    }

   private:
    void run_passes(const float* lr, int h, int w, float* tables, int threads, Workspace& workspace) const override {
        const std::size_t layers = mapping_.size();
        const std::size_t passes = std::max<std::size_t>(1, (layers + kMostMapping - 1) / kMostMapping);
        const Cut cut(h, w, static_cast<int>((layers + passes - 1) / passes));
        Plane planes[2];
        for (std::size_t i = 0; i < std::min<std::size_t>(2, passes - 1); ++i) {
            planes[i] = Plane{workspace.planes.get(i, Plane::floats(cut, small_)), &cut, small_};
        }
        for (std::size_t i = 0; i < passes; ++i) {
            const bool first = i == 0, last = i == passes - 1;
            FsrcnnPass pass{width_,       small_,
                            {},           first ? &entry_ : nullptr,
                            &shrink_,     shrink_layer_.activation,
                            entry_.picture(lr), planes[(i + 1) % 2],
                            planes[i % 2], last ? &expand_ : nullptr,
                            expand_layer_.activation, &table_layer_,
                            tables};
            for (std::size_t j = i * layers / passes; j < (i + 1) * layers / passes; ++j) pass.mapping.push_back(&mapping_[j]);
            run_pass(pass, cut, workspace, threads);
        }
    }

    // In a pass: each takes a column from either side of every strip.
    static constexpr std::size_t kMostMapping = 6;

    int width_, small_;
    Entry entry_;
    FsrcnnLayer shrink_layer_;
    Pointwise shrink_;
    FsrcnnLayer expand_layer_;
    Pointwise expand_;
    std::vector<MappingLayer> mapping_;
    TableLayer table_layer_;
};

}  // namespace PCSR_ISA
