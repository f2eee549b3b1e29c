// 1x1 convolutions of one or several tensors, summed: a concatenation is never made.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "activation.hpp"
#include "blocks.hpp"
#include "simd.hpp"
#include "strips.hpp"

namespace PCSR_ISA {

class Pointwise {
   public:
    static constexpr int kMostParts = 4;

    // weights: of each part, (outputs, inputs).
    Pointwise(const std::vector<const float*>& weights, const float* bias, int inputs, int outputs)
        : inputs_(inputs), parts_(static_cast<int>(weights.size())), blocks_(outputs, kOutputsOfTwoVectors) {
        bias_.assign(bias, bias + outputs);
        for (int b = 0; b < blocks_.count; ++b) {
            for (const float* weight : weights) {
                for (int k = 0; k < inputs; ++k) {
                    for (int o = blocks_.begin(b); o < blocks_.begin(b + 1); ++o) {
                        weights_.push_back(weight[static_cast<std::size_t>(o) * inputs + k]);
                    }
                }
            }
        }
    }

    int parts() const { return parts_; }

    // A row: the parts have (inputs, columns), what is written (outputs, columns), and so the residual, if any, that is
    // added before the activation.
    void row(const float* const* parts, const float* residual, Activation activation, float* out, int tiles) const {
        constexpr auto kernels = kernel_table<Kernel, kOutputsOfTwoVectors>();
        const int columns = kPhases * tiles;
        const std::size_t channel = channel_floats(tiles);
        // Columns outside: a few lines of all inputs stay in the first-level cache while all weights pass by.
        for (int x = 0; x < columns; x += kStep) {
            const float* weights = weights_.data();
            for (int b = 0; b < blocks_.count; ++b) {
                const int n = blocks_.size(b);
                const std::size_t at = blocks_.begin(b) * channel + x;
                kernels[n - 1](*this, parts, x, channel, weights, &bias_[blocks_.begin(b)],
                               residual ? residual + at : nullptr, activation, out + at);
                weights += static_cast<std::size_t>(parts_) * inputs_ * n;
            }
        }
    }

   private:
    static constexpr int kVectors = 2;  // a row has four phases, so an even number
    static constexpr int kStep = kVectors * kLanes;

    template <int N>
    struct Kernel {
        static void run(const Pointwise& of, const float* const* parts, int x, std::size_t channel, const float* weights,
                        const float* bias, const float* residual, Activation activation, float* out) {
            Vec sum[N][kVectors];
            PCSR_UNROLL
            for (int o = 0; o < N; ++o) {
                PCSR_UNROLL
                for (int v = 0; v < kVectors; ++v) sum[o][v] = broadcast(bias[o]);
            }
            const auto add = [&](const float* in) __attribute__((always_inline)) {
                Vec value[kVectors];
                PCSR_UNROLL
                for (int v = 0; v < kVectors; ++v) value[v] = load(in + v * kLanes);
                PCSR_UNROLL
                for (int o = 0; o < N; ++o) {
                    const Vec weight = broadcast(weights[o]);
                    PCSR_UNROLL
                    for (int v = 0; v < kVectors; ++v) sum[o][v] = multiply_add(weight, value[v], sum[o][v]);
                }
                weights += N;
            };
            int k = 0;
            const float* in = parts[0] + x;
            // Rows of planes come from memory and go there: fetched while the first products take their time.
            const float* ahead = out;
            const float* behind = residual;
            for (; k < std::min(N, of.inputs_); ++k, in += channel) {
                __builtin_prefetch(ahead, 1);
                __builtin_prefetch(ahead + kStep - 1, 1);
                ahead += channel;
                if (residual) {
                    __builtin_prefetch(behind);
                    __builtin_prefetch(behind + kStep - 1);
                    behind += channel;
                }
                add(in);
            }
            for (; k < of.inputs_; ++k, in += channel) add(in);
            for (int part = 1; part < of.parts_; ++part) {
                in = parts[part] + x;
                for (k = 0; k < of.inputs_; ++k, in += channel) add(in);
            }
            if (residual) {
                PCSR_UNROLL
                for (int o = 0; o < N; ++o) {
                    PCSR_UNROLL
                    for (int v = 0; v < kVectors; ++v) sum[o][v] += load(residual + v * kLanes);
                    residual += channel;
                }
            }
            PCSR_UNROLL
            for (int o = 0; o < N; ++o) {
                PCSR_UNROLL
                for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, activate(sum[o][v], activation));
                out += channel;
            }
        }
    };

    int inputs_, parts_;
    Blocks blocks_;
    std::vector<float> weights_;  // (block, part, input, output of the block): in the order of use
    std::vector<float> bias_;
};

}  // namespace PCSR_ISA
