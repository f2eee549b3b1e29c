// CARN: cascades of residual units with grouped convolutions.
//
// Three passes, a block each: all that lies between the layers of a block stays in the cache, and between passes a
// picture of the block's output and of the cascade's is in memory.
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
#include "pointwise.hpp"
#include "slab_convolution.hpp"
#include "table_layer.hpp"

namespace PCSR_ISA {

// Both levels of the cascade have three steps.
constexpr int kSteps = 3;

// Behind step j a 1x1 convolution of the cascade's input and the outputs of all steps so far.
inline std::vector<Pointwise> pack_cascade(const pcsr::NetworkDescription& network, const std::string& name) {
    const int width = network.width;
    std::vector<Pointwise> steps;
    for (int j = 1; j <= kSteps; ++j) {
        const std::string step = name + ".cascade" + std::to_string(j);
        std::vector<const float*> parts;
        for (int i = 0; i <= j; ++i) parts.push_back(network.weight(step + ".weight" + std::to_string(i), {width, width}));
        steps.emplace_back(parts, network.weight(step + ".bias", {width}), width, width);
    }
    return steps;
}

// One residual unit, run three times, and the cascade around it.
struct CarnBlock {
    CarnBlock(const pcsr::NetworkDescription& network, const std::string& name, int groups, Form form)
        : conv1(grouped(network, name + ".unit.conv1", groups, form)),
          conv2(grouped(network, name + ".unit.conv2", groups, form)),
          conv3({network.weight(name + ".unit.conv3.weight", {network.width, network.width, 1, 1})},
                network.weight(name + ".unit.conv3.bias", {network.width}), network.width, network.width),
          cascade(pack_cascade(network, name)) {}

    static SlabConvolution grouped(const pcsr::NetworkDescription& network, const std::string& name, int groups, Form form) {
        const int width = network.width;
        return SlabConvolution(form, network.weight(name + ".weight", {width, width / groups, 3, 3}),
                               network.weight(name + ".bias", {width}), width, width, groups);
    }

    SlabConvolution conv1, conv2;
    Pointwise conv3;
    std::vector<Pointwise> cascade;
};

class CarnPass {
   public:
    // Rows that the first layer of a block is ahead of the last: two convolutions a step.
    static constexpr int kAhead = 2 * kSteps;

    const CarnBlock& block;
    const Pointwise& outer;    // the cascade of blocks behind this one
    const Entry* entry;        // of the first pass, which has no input
    Picture picture;
    Plane in;
    std::vector<Plane> parts;  // of the outer cascade, but for this block's own: read, the first pass writes its one
    Plane own, out;            // written, if there is a later pass to read them
    const TableLayer* table_layer;  // of the last pass
    float* tables;

    int width() const { return in.channels; }
    Margin margin() const { return around(kAhead, entry); }

    struct Rows {
        Rows(Arena& arena, const CarnPass& pass, int columns)
            : zeros(arena.take(row_floats(pass, columns))),
              entry(arena, 1, columns),
              x(arena, kSlab + kAhead, pass.width(), columns),
              conv1{{arena, kSlab + 2, pass.width(), columns},
                    {arena, kSlab + 2, pass.width(), columns},
                    {arena, kSlab + 2, pass.width(), columns}},
              mixed{{arena, kSlab + 2, pass.width(), columns}, {arena, kSlab + 2, pass.width(), columns}},
              unit{{arena, kSlab + 4, pass.width(), columns}, {arena, kSlab + 2, pass.width(), columns}},
              conv2(arena, kSlab, pass.width(), columns),
              spare(arena, kSpares, pass.width(), columns),
              scratch(arena.take(std::max(pass.block.conv1.scratch(), pass.block.conv2.scratch()))) {}

        static std::size_t row_floats(const CarnPass& pass, int columns) {
            return static_cast<std::size_t>(pass.width()) * columns;
        }

        // The last unit's and this block's output, the outer cascade's, and the parts of that from memory.
        static constexpr int kSpares = 3 + kSteps;
        float* zeros;
        EntryRows entry;
        Ring x, conv1[kSteps], mixed[kSteps - 1], unit[kSteps - 1], conv2, spare;
        float* scratch;
    };

    void unit(const Strip& strip, Rows& rows) const {
        std::fill_n(rows.zeros, Rows::row_floats(*this, strip.columns()), 0.0f);
        const int first = strip.y0 - lead(kAhead);
        if (entry) rows.entry.begin(strip, first + kAhead);
        for (int y = first; y < strip.y1; y += kSlab) {
            source(strip, rows, y + kAhead);
            for (int step = 0; step < kSteps; ++step) {
                const int ahead = kAhead - 2 * (step + 1);  // what the step gives
                const Ring& in = step == 0 ? rows.x : rows.mixed[step - 1];
                convolve(strip, rows, block.conv1, in, y + ahead + 1, ahead + 1, rows.conv1[step]);
                convolve(strip, rows, block.conv2, rows.conv1[step], y + ahead, ahead, rows.conv2);
                if (needed(strip, y + ahead, ahead)) mix(strip, rows, step, y + ahead);
            }
        }
    }

   private:
    void source(const Strip& strip, Rows& rows, int y) const {
        float* to[kSlab];
        rows.x.slab(y, to);
        if (entry) {
            rows.entry.slab(*entry, picture, strip, y, to);
            return;
        }
        for (int i = 0; i < kSlab; ++i) {
            if (strip.has_row(y + i)) load_row(strip, in, y + i, to[i]);
        }
    }

    void convolve(const Strip& strip, Rows& rows, const SlabConvolution& convolution, const Ring& in, int y, int ahead,
                  Ring& out) const {
        if (!needed(strip, y, ahead)) return;
        const float* from[kSlab + 2];
        float* to[kSlab];
        in.around(strip, rows.zeros, y, 1, from);
        out.slab(y, to);
        convolution.slab(strip, from, kRectified, to, rows.scratch);
    }

    // The 1x1 convolutions of a step: the end of the residual unit, and the cascade.
    void mix(const Strip& strip, Rows& rows, int step, int y) const {
        const bool last = step == kSteps - 1;
        const Ring& in = step == 0 ? rows.x : rows.mixed[step - 1];
        float* to[kSlab];
        if (!last) rows.mixed[step].slab(y, to);
        for (int i = 0; i < kSlab; ++i) {
            const int at = y + i;
            if (!strip.has_row(at) || (last && at >= strip.y1)) continue;
            const float* conv2 = rows.conv2.row(at);
            float* unit = last ? rows.spare.row(0) : rows.unit[step].row(at);
            block.conv3.row(&conv2, in.row(at), kRectified, unit, strip.columns());
            const float* gathered[Pointwise::kMostParts] = {rows.x.row(at)};
            for (int j = 0; j < step; ++j) gathered[j + 1] = rows.unit[j].row(at);
            gathered[step + 1] = unit;
            float* mixed = last ? rows.spare.row(1) : to[i];
            block.cascade[step].row(gathered, nullptr, kRectified, mixed, strip.columns());
            if (last) {
                give(strip, rows, at, mixed);
            } else {
                clear_borders(strip, mixed, width());
            }
        }
    }

    // The block's output of a row that the unit gives, and that of the cascade of blocks.
    void give(const Strip& strip, Rows& rows, int y, const float* output) const {
        const float* gathered[Pointwise::kMostParts];
        int part = 0;
        if (entry) {
            gathered[part++] = rows.x.row(y);
            store_row(strip, rows.x.row(y), parts.front(), y);
        } else {
            for (; part < static_cast<int>(parts.size()); ++part) {
                float* row = rows.spare.row(3 + part);
                load_row(strip, parts[part], y, row);
                gathered[part] = row;
            }
        }
        gathered[part] = output;
        float* mixed = rows.spare.row(2);
        outer.row(gathered, nullptr, kRectified, mixed, strip.columns());
        if (table_layer) {
            table_layer->row(strip, mixed, y, tables);
        } else {
            store_row(strip, output, own, y);
            store_row(strip, mixed, out, y);
        }
    }
};

class Carn final : public Backbone {
   public:
    Carn(const pcsr::NetworkDescription& network, Form form)
        : width_(network.width), entry_(network, "backbone.entry", 3, kIdentity), table_layer_(network) {
        const int groups = network.option("groups");
        if (groups < 1 || width_ % groups != 0) throw std::invalid_argument("the width is no multiple of the groups");
        for (int b = 1; b <= kSteps; ++b) blocks_.emplace_back(network, "backbone.block" + std::to_string(b), groups, form);
        outer_ = pack_cascade(network, "backbone");
    }

    void run(const float* lr, int h, int w, float* tables, int threads) const override {
        const Workspaces::Lease lease(workspaces_);
        Workspace& workspace = *lease;
        const auto plane = [&](int index) {
            return Plane{workspace.planes.get(index, Plane::floats(width_, h, w)), width_, Plane::tiles_of(w)};
        };
        // The entry's and the first two blocks' outputs; those of the first two steps of the cascade.
        const Plane parts[kSteps] = {plane(0), plane(1), plane(2)};
        const Plane mixed[kSteps - 1] = {plane(3), plane(4)};
        for (int b = 0; b < kSteps; ++b) {
            const bool first = b == 0, last = b == kSteps - 1;
            const CarnPass pass{blocks_[b],
                                outer_[b],
                                first ? &entry_ : nullptr,
                                entry_.picture(lr),
                                first ? mixed[0] : mixed[b - 1],
                                std::vector<Plane>(parts, parts + b + 1),
                                last ? Plane{} : parts[b + 1],
                                last ? Plane{} : mixed[b],
                                last ? &table_layer_ : nullptr,
                                tables};
            run_pass(pass, h, w, workspace, threads);
        }
    }

   private:
    int width_;
    Entry entry_;
    std::vector<CarnBlock> blocks_;
    std::vector<Pointwise> outer_;
    TableLayer table_layer_;
    mutable Workspaces workspaces_;
};

}  // namespace PCSR_ISA
