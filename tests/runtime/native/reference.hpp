// Backbones as their definitions read: one loop for each sum, in double precision, zeros beside the picture.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "network.hpp"

namespace reference {

// (channels, h, w).
struct Tensor {
    int channels, h, w;
    std::vector<double> values;

    Tensor(int channels, int h, int w) : channels(channels), h(h), w(w), values(static_cast<std::size_t>(channels) * h * w) {}
    double& at(int c, int y, int x) { return values[(static_cast<std::size_t>(c) * h + y) * w + x]; }
    double padded(int c, int y, int x) const {
        return y < 0 || y >= h || x < 0 || x >= w ? 0 : values[(static_cast<std::size_t>(c) * h + y) * w + x];
    }
};

inline Tensor convolve(const Tensor& in, const float* weights, const float* bias, int outputs, int groups, int kernel) {
    Tensor out(outputs, in.h, in.w);
    const int inputs = in.channels / groups, reach = kernel / 2;
    for (int o = 0; o < outputs; ++o) {
        const int first = o / (outputs / groups) * inputs;
        for (int y = 0; y < in.h; ++y) {
            for (int x = 0; x < in.w; ++x) {
                double sum = bias ? bias[o] : 0;
                const float* weight = weights + static_cast<std::size_t>(o) * inputs * kernel * kernel;
                for (int k = 0; k < inputs; ++k) {
                    for (int i = 0; i < kernel; ++i) {
                        for (int j = 0; j < kernel; ++j) {
                            sum += *weight++ * in.padded(first + k, y + i - reach, x + j - reach);
                        }
                    }
                }
                out.at(o, y, x) = sum;
            }
        }
    }
    return out;
}

inline Tensor add(Tensor a, const Tensor& b) {
    for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
    return a;
}

inline Tensor leaky(Tensor x, double slope) {
    for (double& value : x.values) value = value > 0 ? value : slope * value;
    return x;
}

inline Tensor relu(Tensor x) { return leaky(std::move(x), 0); }

// A network with random weights, of a size that keeps features about as large as they were.
class Network {
   public:
    pcsr::NetworkDescription description;

    Network(const std::string& backbone, int width, const std::vector<std::pair<std::string, int>>& options, int seed)
        : random_(seed) {
        description.backbone = backbone;
        description.width = width;
        for (const auto& [name, value] : options) description.options[name] = value;
        description.add_head("classifier", {10, 10}, 1);
        description.add_head("upsampler_0", {}, 3);
        description.add_head("upsampler_1", {37}, 3);
        for (const pcsr::Head& head : description.heads) make(head.name + ".first.table", {head.channels, width}, width);
        const float mean[] = {0.4488f, 0.4371f, 0.404f}, deviation[] = {1.0f, 0.5f, 2.0f};
        std::copy_n(mean, 3, description.mean);
        std::copy_n(deviation, 3, description.std);
    }

    const float* make(const std::string& name, std::vector<std::int64_t> shape, int summed) {
        std::size_t size = 1;
        for (const std::int64_t side : shape) size *= static_cast<std::size_t>(side);
        std::normal_distribution<float> normal(0.0f, summed ? 1.0f / std::sqrt(static_cast<float>(summed)) : 0.1f);
        storage_.emplace_back(size);
        for (float& value : storage_.back()) value = normal(random_);
        description.weights[name] = {storage_.back().data(), std::move(shape)};
        return storage_.back().data();
    }

    void make_convolution(const std::string& name, int outputs, int inputs, int kernel) {
        make(name + ".weight", {outputs, inputs, kernel, kernel}, inputs * kernel * kernel);
        make(name + ".bias", {outputs}, 0);
    }

    const float* get(const std::string& name) const { return description.weights.at(name).data; }

    Tensor convolution(const Tensor& in, const std::string& name, int outputs, int groups, int kernel) const {
        return convolve(in, get(name + ".weight"), get(name + ".bias"), outputs, groups, kernel);
    }

    Tensor normalised(const std::vector<float>& lr, int h, int w) const {
        Tensor x(3, h, w);
        const std::size_t plane = static_cast<std::size_t>(h) * w;
        for (std::size_t i = 0; i < x.values.size(); ++i) {
            x.values[i] = (static_cast<double>(lr[i]) - description.mean[i / plane]) / description.std[i / plane];
        }
        return x;
    }

   private:
    std::mt19937 random_;
    std::vector<std::vector<float>> storage_;
};

// --- CARN ----------------------------------------------------------------------------------------------------

inline Network carn(int width, int groups, int seed) {
    Network network("carn", width, {{"groups", groups}}, seed);
    const auto cascade = [&](const std::string& name) {
        for (int j = 1; j <= 3; ++j) {
            const std::string step = name + ".cascade" + std::to_string(j);
            for (int i = 0; i <= j; ++i) network.make(step + ".weight" + std::to_string(i), {width, width}, width * (j + 1));
            network.make(step + ".bias", {width}, 0);
        }
    };
    network.make_convolution("backbone.entry", width, 3, 3);
    cascade("backbone");
    for (int b = 1; b <= 3; ++b) {
        const std::string block = "backbone.block" + std::to_string(b);
        cascade(block);
        for (int i = 1; i <= 2; ++i) network.make_convolution(block + ".unit.conv" + std::to_string(i), width, width / groups, 3);
        network.make_convolution(block + ".unit.conv3", width, width, 1);
    }
    return network;
}

template <class Step>
Tensor cascade(const Network& network, const std::string& name, const Tensor& x, Step step) {
    std::vector<Tensor> parts{x};
    Tensor output = x;
    for (int j = 1; j <= 3; ++j) {
        parts.push_back(step(output, j));
        const std::string mix = name + ".cascade" + std::to_string(j);
        Tensor sum = convolve(parts[0], network.get(mix + ".weight0"), network.get(mix + ".bias"), x.channels, 1, 1);
        for (int i = 1; i <= j; ++i) {
            sum = add(std::move(sum), convolve(parts[i], network.get(mix + ".weight" + std::to_string(i)), nullptr, x.channels, 1, 1));
        }
        output = relu(std::move(sum));
    }
    return output;
}

inline Tensor carn_features(const Network& network, const Tensor& picture) {
    const int width = network.description.width, groups = network.description.option("groups");
    return cascade(network, "backbone", network.convolution(picture, "backbone.entry", width, 1, 3), [&](const Tensor& in, int b) {
        const std::string block = "backbone.block" + std::to_string(b);
        return cascade(network, block, in, [&](const Tensor& x, int) {
            Tensor y = relu(network.convolution(x, block + ".unit.conv1", width, groups, 3));
            y = relu(network.convolution(y, block + ".unit.conv2", width, groups, 3));
            return relu(add(network.convolution(y, block + ".unit.conv3", width, 1, 1), x));
        });
    });
}

// --- FSRCNN --------------------------------------------------------------------------------------------------

inline Network fsrcnn(int width, int s, int m, int seed) {
    Network network("fsrcnn", width, {{"s", s}, {"m", m}}, seed);
    network.make_convolution("backbone.layer0", width, 3, 5);
    network.make_convolution("backbone.layer1", s, width, 1);
    for (int i = 0; i < m; ++i) network.make_convolution("backbone.layer" + std::to_string(i + 2), s, s, 3);
    network.make_convolution("backbone.layer" + std::to_string(m + 2), width, s, 1);
    for (const int i : {0, 1, m + 1, m + 2}) network.make("backbone.layer" + std::to_string(i) + ".slope", {1}, 0);
    return network;
}

inline Tensor fsrcnn_features(const Network& network, const Tensor& picture) {
    const int width = network.description.width, s = network.description.option("s"), m = network.description.option("m");
    Tensor x = picture;
    for (int i = 0; i < m + 3; ++i) {
        const std::string layer = "backbone.layer" + std::to_string(i);
        const int kernel = i == 0 ? 5 : i == 1 || i == m + 2 ? 1 : 3;
        x = network.convolution(x, layer, i == 0 || i == m + 2 ? width : s, 1, kernel);
        if (network.description.has(layer + ".slope")) x = leaky(std::move(x), *network.get(layer + ".slope"));
    }
    return x;
}

// --- SRResNet ------------------------------------------------------------------------------------------------

inline Network srresnet(int width, int nb, int seed) {
    Network network("srresnet", width, {{"nb", nb}}, seed);
    network.make_convolution("backbone.entry", width, 3, 3);
    for (int i = 0; i < nb; ++i) {
        for (const char* name : {".conv1", ".conv2"}) {
            network.make_convolution("backbone.unit" + std::to_string(i) + name, width, width, 3);
        }
    }
    return network;
}

inline Tensor srresnet_features(const Network& network, const Tensor& picture) {
    const int width = network.description.width;
    Tensor x = leaky(network.convolution(picture, "backbone.entry", width, 1, 3), 0.1f);
    for (int i = 0; i < network.description.option("nb"); ++i) {
        const std::string unit = "backbone.unit" + std::to_string(i);
        const Tensor y = relu(network.convolution(x, unit + ".conv1", width, 1, 3));
        x = add(std::move(x), network.convolution(y, unit + ".conv2", width, 1, 3));
    }
    return x;
}

// (h, w, row).
inline std::vector<double> tables(const Network& network, const std::vector<float>& lr, int h, int w) {
    const Tensor picture = network.normalised(lr, h, w);
    const std::string& backbone = network.description.backbone;
    const Tensor features = backbone == "carn"     ? carn_features(network, picture)
                            : backbone == "fsrcnn" ? fsrcnn_features(network, picture)
                                                   : srresnet_features(network, picture);
    std::vector<double> out(static_cast<std::size_t>(h) * w * network.description.row);
    for (const pcsr::Head& head : network.description.heads) {
        Tensor table = convolve(features, network.get(head.name + ".first.table"), nullptr, head.channels, 1, 1);
        for (int y = 0; y < h; ++y) {
            for (int x = 0; x < w; ++x) {
                for (int c = 0; c < head.channels; ++c) {
                    out[(static_cast<std::size_t>(y) * w + x) * network.description.row + head.offset + c] = table.at(c, y, x);
                }
            }
        }
    }
    return out;
}

}  // namespace reference
