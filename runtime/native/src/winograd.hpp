// 3x3 convolutions by Winograd's F(4x4, 3x3), a slab of four rows at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "activation.hpp"
#include "blocks.hpp"
#include "strips.hpp"
#include "winograd_transforms.hpp"

namespace PCSR_ISA {

class Winograd {
   public:
    // weights: (outputs, inputs / groups, 3, 3).
    Winograd(const float* weights, const float* bias, int inputs, int outputs, int groups)
        : inputs_(inputs / groups), groups_(groups), blocks_(outputs / groups, kOutputsOfOneVector) {
        bias_.assign(bias, bias + outputs);
        weights_.reserve(static_cast<std::size_t>(outputs) * inputs_ * kFrequencies);
        for (int g = 0; g < groups; ++g) {
            for (int f = 0; f < kFrequencies; ++f) {
                for (int b = 0; b < blocks_.count; ++b) {
                    for (int k = 0; k < inputs_; ++k) {
                        for (int o = blocks_.begin(b); o < blocks_.begin(b + 1); ++o) {
                            const std::size_t output = static_cast<std::size_t>(g) * blocks_.outputs + o;
                            weights_.push_back(frequency(weights + (output * inputs_ + k) * 9, f));
                        }
                    }
                }
            }
        }
    }

    // What slab() needs of memory: the frequencies of the inputs and, unless a block takes their place, of the outputs.
    std::size_t scratch() const {
        return kFrequencies * (in_place() ? in_stride() : in_stride() + out_stride());
    }

    // in: the rows from one above the slab to one below, (inputs, columns) each; out: (outputs, columns) each.
    void slab(const float* const (&in)[kTileInputs], Activation activation, float* const (&out)[kTileOutputs], int tiles,
              float* scratch) const {
        for (int g = 0; g < groups_; ++g) {
            for (int tile = 0; tile < tiles; tile += kLanes) {
                transform_inputs(g, in, tile, tiles, scratch);
                multiply(g, scratch);
                transform_outputs(g, scratch, activation, out, tile, tiles);
            }
        }
    }

    // The steps of a slab, of a vector of tiles of a group: to frequencies, their products, and back.

    void transform_inputs(int g, const float* const (&in)[kTileInputs], int tile, int tiles, float* scratch) const {
        const std::size_t channel = channel_floats(tiles);
        int offsets[kTileInputs];
        for (int j = 0; j < kTileInputs; ++j) offsets[j] = column_offset(j - 1, tiles);
        for (int k = 0; k < inputs_; ++k) {
            const float* rows[kTileInputs];
            for (int i = 0; i < kTileInputs; ++i) rows[i] = in[i] + (g * inputs_ + k) * channel + tile;
            transform_input(rows, offsets, scratch + static_cast<std::size_t>(k) * kLanes, in_stride());
        }
    }

    void multiply(int g, float* scratch) const {
        constexpr auto kernels = kernel_table<Kernel, kOutputsOfOneVector>();
        const float* weights = &weights_[static_cast<std::size_t>(g) * kFrequencies * inputs_ * blocks_.outputs];
        const float* in = scratch;
        float* out = products(scratch);
        for (int f = 0; f < kFrequencies; ++f) {
            for (int b = 0; b < blocks_.count; ++b) {
                const int n = blocks_.size(b);
                kernels[n - 1](in, inputs_, weights, out + static_cast<std::size_t>(blocks_.begin(b)) * kLanes);
                weights += static_cast<std::size_t>(inputs_) * n;
            }
            in += in_stride();
            out += out_stride();
        }
    }

    void transform_outputs(int g, float* scratch, Activation activation, float* const (&out)[kTileOutputs], int tile,
                           int tiles) const {
        const std::size_t channel = channel_floats(tiles);
        const float* from = products(scratch);
        for (int o = 0; o < blocks_.outputs; ++o) {
            const int output = g * blocks_.outputs + o;
            transform_output(from + static_cast<std::size_t>(o) * kLanes, out_stride(), broadcast(bias_[output]), activation,
                             out, output * channel + tile, tiles);
        }
    }

   private:
    // Frequencies begin at different sets of the cache, whatever the channels.
    static std::size_t stride(int channels) { return (static_cast<std::size_t>(channels) * kLanes + 15) / 16 * 16 + 16; }

    // One block: all inputs of a frequency are read before its outputs are written.
    bool in_place() const { return blocks_.count == 1; }

    std::size_t in_stride() const { return stride(in_place() ? std::max(inputs_, blocks_.outputs) : inputs_); }
    std::size_t out_stride() const { return in_place() ? in_stride() : stride(blocks_.outputs); }
    float* products(float* scratch) const { return in_place() ? scratch : scratch + kFrequencies * in_stride(); }

    static float frequency(const float* kernel, int f) {
        double sum = 0;
        for (int y = 0; y < 3; ++y) {
            for (int x = 0; x < 3; ++x) {
                sum += kKernelTransform[f / kTileInputs][y] * kKernelTransform[f % kTileInputs][x] * kernel[y * 3 + x];
            }
        }
        return static_cast<float>(sum);
    }

    template <int N>
    struct Kernel {
        static void run(const float* in, int inputs, const float* weights, float* out) {
            Vec sum[N];
            const Vec first = load(in);
            PCSR_UNROLL
            for (int o = 0; o < N; ++o) sum[o] = broadcast(weights[o]) * first;
            for (int k = 1; k < inputs; ++k) {
                in += kLanes;
                weights += N;
                const Vec value = load(in);
                PCSR_UNROLL
                for (int o = 0; o < N; ++o) sum[o] = multiply_add(broadcast(weights[o]), value, sum[o]);
            }
            PCSR_UNROLL
            for (int o = 0; o < N; ++o) store(out + o * kLanes, sum[o]);
        }
    };

    int inputs_, groups_;         // inputs of a group
    Blocks blocks_;               // of a group's outputs
    std::vector<float> weights_;  // (group, frequency, block, input, output of the block): in the order of use
    std::vector<float> bias_;
};

}  // namespace PCSR_ISA
