// CARN: cascades of residual units with grouped convolutions.
//
// Three passes, a block each: all that lies between the layers of a block stays in the cache. Between passes there are
// pictures in memory of what the next block begins with, and of what the blocks so far add to later steps of the cascade
// of blocks: fewer than of all the blocks' outputs.
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

// Of the cascade of blocks what a block adds to each step behind it, the first block what the entry adds too.
inline std::vector<Pointwise> pack_outer(const pcsr::NetworkDescription& network, int block) {
    const int width = network.width;
    const std::vector<float> nothing(width, 0.0f);
    std::vector<Pointwise> steps;
    for (int j = block; j < kSteps; ++j) {
        const std::string step = "backbone.cascade" + std::to_string(j + 1);
        const auto part = [&](int i) { return network.weight(step + ".weight" + std::to_string(i), {width, width}); };
        if (block == 0) {
            steps.emplace_back(std::vector<const float*>{part(0), part(1)}, network.weight(step + ".bias", {width}), width, width);
        } else {
            steps.emplace_back(std::vector<const float*>{part(block + 1)}, nothing.data(), width, width);
        }
    }
    return steps;
}

class CarnPass {
   public:
    // Rows that the first layer of a block is ahead of the last: two convolutions a step.
    static constexpr int kAhead = 2 * kSteps;

    int width;
    const CarnBlock& block;
    const std::vector<Pointwise>& outer;  // what the block adds to the steps behind it
    const Entry* entry;                   // of the first pass, which has no input
    Picture picture;
    Plane in, out;
    const Plane* sums;              // of the second and third step: read, unless it is the first pass, and written
    const TableLayer* table_layer;  // of the last pass
    float* tables;

    struct Rows {
        Rows(Arena& arena, const CarnPass& pass, int tiles)
            : zeros(arena.take(row_floats(pass, tiles))),
              entry(arena, 1, tiles),
              x(arena, kSlab + kAhead, pass.width, tiles),
              conv1{{arena, kSlab + 2, pass.width, tiles},
                    {arena, kSlab + 2, pass.width, tiles},
                    {arena, kSlab + 2, pass.width, tiles}},
              mixed{{arena, kSlab + 2, pass.width, tiles}, {arena, kSlab + 2, pass.width, tiles}},
              unit{{arena, kSlab + 4, pass.width, tiles}, {arena, kSlab + 2, pass.width, tiles}},
              conv2(arena, kSlab, pass.width, tiles),
              spare(arena, kSpares, pass.width, tiles),
              scratch(arena.take(std::max(pass.block.conv1.scratch(), pass.block.conv2.scratch()))) {}

        static std::size_t row_floats(const CarnPass& pass, int tiles) {
            return pass.width * channel_floats(tiles);
        }

        // The last unit's and the block's output, and the features.
        static constexpr int kSpares = 3;
        float* zeros;
        EntryRows entry;
        Ring x, conv1[kSteps], mixed[kSteps - 1], unit[kSteps - 1], conv2, spare;
        float* scratch;
    };

    void unit(const Strip& strip, Rows& rows) const {
        std::fill_n(rows.zeros, Rows::row_floats(*this, strip.tiles), 0.0f);
        const int first = strip.y0 - lead(kAhead);
        if (entry) rows.entry.begin(first + kAhead);
        for (int y = first; y < strip.y1; y += kSlab) {
            source(strip, rows, y + kAhead);
            for (int step = 0; step < kSteps; ++step) {
                const int ahead = kAhead - 2 * (step + 1);  // what the step gives
                const Ring& in = step == 0 ? rows.x : rows.mixed[step - 1];
                convolve(strip, block.conv1, in, rows.zeros, y + ahead + 1, ahead + 1, kRectified, rows.conv1[step],
                         rows.scratch);
                convolve(strip, block.conv2, rows.conv1[step], rows.zeros, y + ahead, ahead, kRectified, rows.conv2,
                         rows.scratch);
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
        } else {
            load_slab(strip, in, y, to);
        }
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
            block.conv3.row(&conv2, in.row(at), kRectified, unit, strip.tiles);
            const float* gathered[Pointwise::kMostParts] = {rows.x.row(at)};
            for (int j = 0; j < step; ++j) gathered[j + 1] = rows.unit[j].row(at);
            gathered[step + 1] = unit;
            float* mixed = last ? rows.spare.row(1) : to[i];
            block.cascade[step].row(gathered, nullptr, kRectified, mixed, strip.tiles);
            if (last) {
                give(strip, rows, at, mixed);
            } else {
                clear_borders(strip, mixed, width);
            }
        }
    }

    // What the block adds, of a row that the unit gives, to the steps behind it; the first of them is then complete.
    void give(const Strip& strip, Rows& rows, int y, const float* output) const {
        const float* gathered[Pointwise::kMostParts] = {rows.x.row(y), output};
        const float* const* parts = entry ? gathered : gathered + 1;
        const int done = kSteps - static_cast<int>(outer.size());
        for (int step = done; step < kSteps; ++step) {
            float* sum = step == 0 ? nullptr : sums[step - 1].row(strip, y);
            const float* so_far = entry ? nullptr : sum;
            const Pointwise& add = outer[step - done];
            if (step > done) {
                add.row(parts, so_far, kIdentity, sum, strip.tiles);
                continue;
            }
            float* mixed = table_layer ? rows.spare.row(2) : out.row(strip, y);
            add.row(parts, so_far, kRectified, mixed, strip.tiles);
            if (table_layer) {
                table_layer->row(strip, mixed, y, tables);
            } else {
                hand_over(strip, out, y);
            }
        }
    }
};

class Carn final : public Backbone {
   public:
    Carn(const pcsr::NetworkDescription& network, Form form)
        : width_(network.width), entry_(network, "backbone.entry", 3, kIdentity), table_layer_(network) {
        const int groups = network.option("groups");
        if (groups < 1 || width_ % groups != 0) throw std::invalid_argument("the width is no multiple of the groups");
        for (int b = 0; b < kSteps; ++b) {
            blocks_.emplace_back(network, "backbone.block" + std::to_string(b + 1), groups, form);
            outer_.push_back(pack_outer(network, b));
        }
    }

   private:
    void run_passes(const float* lr, int h, int w, float* tables, int threads, Workspace& workspace) const override {
        const Cut cut(h, w, CarnPass::kAhead);
        const auto plane = [&](int index) {
            return Plane{workspace.planes.get(index, Plane::floats(cut, width_)), &cut, width_};
        };
        // What the second block begins with takes, row by row, the place of the sums that it is completed from.
        const Plane sums[kSteps - 1] = {plane(1), plane(2)};
        const Plane mixed[kSteps - 1] = {plane(0), sums[0]};
        for (int b = 0; b < kSteps; ++b) {
            const bool first = b == 0, last = b == kSteps - 1;
            const CarnPass pass{width_,
                                blocks_[b],
                                outer_[b],
                                first ? &entry_ : nullptr,
                                entry_.picture(lr),
                                first ? Plane{} : mixed[b - 1],
                                last ? Plane{} : mixed[b],
                                sums,
                                last ? &table_layer_ : nullptr,
                                tables};
            run_pass(pass, cut, workspace, threads);
        }
    }

    int width_;
    Entry entry_;
    std::vector<CarnBlock> blocks_;
    std::vector<std::vector<Pointwise>> outer_;
    TableLayer table_layer_;
};

}  // namespace PCSR_ISA
