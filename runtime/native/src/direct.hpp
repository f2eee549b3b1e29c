// Convolutions as they are written, of any odd kernel and any number of groups: for the entry, with its three channels,
// and what Winograd's are tested against.
#pragma once

#include <cstddef>
#include <vector>

#include "activation.hpp"
#include "blocks.hpp"
#include "strips.hpp"

namespace PCSR_ISA {

class Direct {
   public:
    static constexpr int kLargestKernel = 5;

    // weights: (outputs, inputs / groups, kernel, kernel).
    Direct(const float* weights, const float* bias, int inputs, int outputs, int groups, int kernel)
        : inputs_(inputs / groups), groups_(groups), kernel_(kernel), blocks_(outputs / groups, kOutputsOfOneVector) {
        bias_.assign(bias, bias + outputs);
        const int taps = kernel * kernel;
        for (int g = 0; g < groups; ++g) {
            for (int b = 0; b < blocks_.count; ++b) {
                for (int k = 0; k < inputs_; ++k) {
                    for (int tap = 0; tap < taps; ++tap) {
                        for (int o = blocks_.begin(b); o < blocks_.begin(b + 1); ++o) {
                            const std::size_t output = static_cast<std::size_t>(g) * blocks_.outputs + o;
                            weights_.push_back(weights[(output * inputs_ + k) * taps + tap]);
                        }
                    }
                }
            }
        }
    }

    int reach() const { return kernel_ / 2; }

    // Input rows may be wider than what is written: where they lie, and by how many tiles they begin earlier.
    struct Input {
        const float* const* rows;  // as many as the kernel is high, (inputs, columns) each
        int tiles;
        int before = 0;
    };

    // out: (outputs, columns).
    void row(const Input& in, Activation activation, float* out, int tiles) const {
        constexpr auto kernels = kernel_table<Kernel, kOutputsOfOneVector>();
        const std::size_t channel = channel_floats(tiles);
        const std::size_t in_channel = channel_floats(in.tiles);
        const float* weights = weights_.data();
        for (int g = 0; g < groups_; ++g) {
            const float* rows[kLargestKernel];
            for (int i = 0; i < kernel_; ++i) rows[i] = in.rows[i] + g * inputs_ * in_channel + in.before;
            for (int b = 0; b < blocks_.count; ++b) {
                const int n = blocks_.size(b);
                const int first = g * blocks_.outputs + blocks_.begin(b);
                for (int phase = 0; phase < kPhases; ++phase) {
                    kernels[n - 1](*this, rows, in.tiles, phase, weights, &bias_[first], activation, out + first * channel,
                                   tiles);
                }
                weights += static_cast<std::size_t>(inputs_) * kernel_ * kernel_ * n;
            }
        }
    }

   private:
    template <int N>
    struct Kernel {
        static void run(const Direct& of, const float* const* rows, int in_tiles, int phase, const float* all_weights,
                        const float* bias, Activation activation, float* out, int tiles) {
            const std::size_t channel = channel_floats(tiles);
            const std::size_t in_channel = channel_floats(in_tiles);
            int offsets[kLargestKernel];
            for (int i = 0; i < of.kernel_; ++i) offsets[i] = column_offset(phase + i - of.reach(), in_tiles);
            for (int tile = 0; tile < tiles; tile += kLanes) {
                Vec sum[N];
                PCSR_UNROLL
                for (int o = 0; o < N; ++o) sum[o] = broadcast(bias[o]);
                const float* weights = all_weights;
                for (int k = 0; k < of.inputs_; ++k) {
                    for (int i = 0; i < of.kernel_; ++i) {
                        const float* from = rows[i] + k * in_channel + tile;
                        for (int j = 0; j < of.kernel_; ++j, weights += N) {
                            const Vec value = load(from + offsets[j]);
                            PCSR_UNROLL
                            for (int o = 0; o < N; ++o) sum[o] = multiply_add(broadcast(weights[o]), value, sum[o]);
                        }
                    }
                }
                PCSR_UNROLL
                for (int o = 0; o < N; ++o) {
                    store(out + o * channel + phase * tiles + tile, activate(sum[o], activation));
                }
            }
        }
    };

    int inputs_, groups_, kernel_;  // inputs of a group
    Blocks blocks_;                 // of a group's outputs
    std::vector<float> weights_;    // (group, block, input, tap, output of the block): in the order of use
    std::vector<float> bias_;
};

}  // namespace PCSR_ISA
