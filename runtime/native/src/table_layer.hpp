// Features to the tables of all per-pixel networks: the feature part of their first layers.
#pragma once

#include <algorithm>
#include <cstddef>

#include "buffer.hpp"
#include "network.hpp"
#include "strips.hpp"

namespace PCSR_ISA {

// Pixels lie apart in features and channels lie together in tables: here vectors are of outputs, and each feature of a
// pixel is broadcast.
class TableLayer {
   public:
    explicit TableLayer(const pcsr::NetworkDescription& network)
        : inputs_(network.width), row_(network.row), weights_(static_cast<std::size_t>(inputs_) * row_) {
        for (const pcsr::Head& head : network.heads) {
            const float* table = network.weight(head.name + ".first.table", {head.channels, inputs_});
            for (int k = 0; k < inputs_; ++k) {
                for (int o = 0; o < head.channels; ++o) {
                    weights_.data()[static_cast<std::size_t>(k) * row_ + head.offset + o] =
                        table[static_cast<std::size_t>(o) * inputs_ + k];
                }
            }
        }
        weights_at_ = weights_.data();
    }

    // The columns that the strip gives, of one row of the picture; tables: the whole picture's.
    void row(const Strip& strip, const float* features, int y, float* tables) const {
        float* out = tables + (static_cast<std::size_t>(y) * strip.w + strip.x0) * row_;
        const int count = strip.x1 - strip.x0;
        const int begin = strip.x0 - strip.first;
        int x = 0;
        for (; x + kPixels <= count; x += kPixels) pixels<kPixels>(strip, features, begin + x, out + offset(x));
        // Again some that are done already: cheaper than one by one.
        if (x < count && count >= kPixels) {
            x = count - kPixels;
            pixels<kPixels>(strip, features, begin + x, out + offset(x));
            return;
        }
        for (; x < count; ++x) pixels<1>(strip, features, begin + x, out + offset(x));
    }

   private:
#if PCSR_LANES == 16
    static constexpr int kPixels = 6;
    static constexpr int kVectors = 4;
#else
    static constexpr int kPixels = 4;
    static constexpr int kVectors = 2;
#endif

    std::size_t offset(int pixel) const { return static_cast<std::size_t>(pixel) * row_; }

    template <int Pixels>
    void pixels(const Strip& strip, const float* features, int column, float* out) const {
        const float* in[Pixels];
        for (int p = 0; p < Pixels; ++p) in[p] = features + column_offset(column + p, strip.tiles);
        int o = 0;
        for (; o + kVectors * kLanes <= row_; o += kVectors * kLanes) block<Pixels, kVectors>(in, strip.channel(), o, out);
        for (; o < row_; o += kLanes) block<Pixels, 1>(in, strip.channel(), o, out);
    }

    template <int Pixels, int Vectors>
    PCSR_INLINE void block(const float* const (&in)[Pixels], std::size_t channel, int o, float* out) const {
        Vec sum[Pixels][Vectors] = {};
        const float* weights = weights_at_ + o;
        std::size_t at = 0;
        for (int k = 0; k < inputs_; ++k, at += channel, weights += row_) {
            Vec weight[Vectors];
            PCSR_UNROLL
            for (int v = 0; v < Vectors; ++v) weight[v] = load(weights + v * kLanes);
            PCSR_UNROLL
            for (int p = 0; p < Pixels; ++p) {
                const Vec value = broadcast(in[p][at]);
                PCSR_UNROLL
                for (int v = 0; v < Vectors; ++v) sum[p][v] = multiply_add(value, weight[v], sum[p][v]);
            }
        }
        PCSR_UNROLL
        for (int p = 0; p < Pixels; ++p) {
            PCSR_UNROLL
            for (int v = 0; v < Vectors; ++v) store(out + offset(p) + o + v * kLanes, sum[p][v]);
        }
    }

    int inputs_, row_;
    Buffer weights_;  // (inputs, row)
    const float* weights_at_;
};

}  // namespace PCSR_ISA
