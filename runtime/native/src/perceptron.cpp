#include "perceptron.hpp"

#include <algorithm>
#include <utility>

namespace PCSR_ISA {
namespace {

// N outputs of a layer. packed: N biases, then the weights (inputs, N).
template <int N>
void products(const float* in, int inputs, const float* packed, float* out, bool activated) {
    Vec sums[N][kVectors];
    PCSR_UNROLL
    for (int j = 0; j < N; ++j) {
        PCSR_UNROLL
        for (int v = 0; v < kVectors; ++v) sums[j][v] = broadcast(packed[j]);
    }
    packed += N;
    for (int k = 0; k < inputs; ++k, packed += N, in += kPixels) {
        Vec x[kVectors];
        PCSR_UNROLL
        for (int v = 0; v < kVectors; ++v) x[v] = load(in + v * kLanes);
        PCSR_UNROLL
        for (int j = 0; j < N; ++j) {
            const Vec weight = broadcast(packed[j]);
            PCSR_UNROLL
            for (int v = 0; v < kVectors; ++v) sums[j][v] = multiply_add(x[v], weight, sums[j][v]);
        }
    }
    PCSR_UNROLL
    for (int j = 0; j < N; ++j) {
        PCSR_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            store(out + j * kPixels + v * kLanes, activated ? relu(sums[j][v]) : sums[j][v]);
        }
    }
}

}  // namespace

Perceptron::Perceptron(const pcsr::NetworkDescription& network, const pcsr::Head& head) : widest_(head.channels) {
    for (std::size_t i = 1; i <= head.hidden.size(); ++i) {
        const std::string name = head.name + ".layer" + std::to_string(i);
        Layer layer;
        layer.inputs = head.hidden[i - 1];
        layer.outputs = i < head.hidden.size() ? head.hidden[i] : head.outputs;
        const float* weight = network.weight(name + ".weight", {layer.outputs, layer.inputs});
        const float* bias = network.weight(name + ".bias", {layer.outputs});
        layer.packed.reserve(static_cast<std::size_t>(layer.outputs) * (layer.inputs + 1));
        for (int first = 0; first < layer.outputs; first += kOutputs) {
            const int last = std::min(first + kOutputs, layer.outputs);
            for (int j = first; j < last; ++j) layer.packed.push_back(bias[j]);
            for (int k = 0; k < layer.inputs; ++k) {
                for (int j = first; j < last; ++j) {
                    layer.packed.push_back(weight[static_cast<std::size_t>(j) * layer.inputs + k]);
                }
            }
        }
        widest_ = std::max(widest_, layer.outputs);
        layers_.push_back(std::move(layer));
    }
}

float* Perceptron::run(float* front, float* back) const {
    for (const Layer& layer : layers_) {
        const bool activated = &layer != &layers_.back();
        const float* packed = layer.packed.data();
        for (int first = 0; first < layer.outputs; first += kOutputs) {
            float* out = back + static_cast<std::size_t>(first) * kPixels;
            const int n = std::min(kOutputs, layer.outputs - first);
            switch (n) {
                case 1: products<1>(front, layer.inputs, packed, out, activated); break;
                case 2: products<2>(front, layer.inputs, packed, out, activated); break;
                case 3: products<3>(front, layer.inputs, packed, out, activated); break;
                case 4: products<4>(front, layer.inputs, packed, out, activated); break;
                default: products<kOutputs>(front, layer.inputs, packed, out, activated);
            }
            packed += static_cast<std::size_t>(n) * (layer.inputs + 1);
        }
        std::swap(front, back);
    }
    return front;
}

}  // namespace PCSR_ISA
