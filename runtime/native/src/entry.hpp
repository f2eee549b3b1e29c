// The first convolution of every backbone: from the picture's three channels to features.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "direct.hpp"
#include "network.hpp"
#include "planes.hpp"
#include "rings.hpp"

namespace PCSR_ISA {

struct Entry {
    // Weights `<name>.weight` and `<name>.bias`.
    Entry(const pcsr::NetworkDescription& network, const std::string& name, int kernel, Activation activation)
        : outputs(network.width),
          direct(network.weight(name + ".weight", {outputs, 3, kernel, kernel}),
                 network.weight(name + ".bias", {outputs}), 3, outputs, 1, kernel),
          activation(activation) {
        std::copy_n(network.mean, 3, mean);
        std::copy_n(network.std, 3, deviation);
    }

    Picture picture(const float* lr) const {
        return Picture{lr, {mean[0], mean[1], mean[2]}, {deviation[0], deviation[1], deviation[2]}};
    }

    int outputs;
    Direct direct;
    Activation activation;
    float mean[3], deviation[3];
};

// Its rows for a strip, slab after slab. The picture's rows are a tile wider to both sides than the strip: so strips need
// not overlap more for the entry.
class EntryRows {
   public:
    EntryRows(Arena& arena, int reach, int tiles)
        : reach_(reach),
          tiles_(tiles + 2 * kBefore),
          image_(arena, kSlab + 2 * reach, 3, tiles_),
          zeros_(arena.take(3 * channel_floats(tiles_))) {}

    // The slab that comes first begins at y.
    void begin(int y) {
        next_ = y - reach_;
        image_.begin(next_);
        std::fill_n(zeros_, 3 * channel_floats(tiles_), 0.0f);
    }

    // Those of the four rows from y that are in the picture.
    void slab(const Entry& entry, const Picture& picture, const Strip& strip, int y, float* const (&out)[kSlab]) {
        for (; next_ < y + kSlab + reach_; ++next_) {
            if (!strip.has_row(next_)) continue;
            load_row(strip, picture, strip.first - kPhases * kBefore, tiles_, next_, image_.row(next_));
        }
        const float* in[kSlab + Direct::kLargestKernel - 1];
        image_.around(strip, zeros_, y, reach_, in);
        for (int i = 0; i < kSlab; ++i) {
            if (!strip.has_row(y + i)) continue;
            entry.direct.row({in + i, tiles_, kBefore}, entry.activation, out[i], strip.tiles);
            clear_borders(strip, out[i], entry.outputs);
        }
    }

   private:
    static constexpr int kBefore = 1;
    static_assert(kPhases * kBefore >= Direct::kLargestKernel / 2);

    int reach_, tiles_, next_ = 0;
    Ring image_;
    float* zeros_;
};

}  // namespace PCSR_ISA
