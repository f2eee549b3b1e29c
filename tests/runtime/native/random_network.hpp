// Networks with random heads and no backbone, and the geometry and tables of pictures for them.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace random_network {

using Sizes = std::vector<int>;

// Of its size to the byte, so that the sanitizer sees the first one beyond.
template <class T>
struct Exact {
    explicit Exact(std::size_t size) : size(size), data(new T[size]()) {}

    std::size_t size;
    std::unique_ptr<T[]> data;
};

inline std::uint32_t state = 1;

inline float random_float() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
}

inline Exact<float> random_floats(std::size_t size, float scale = 1.0f) {
    Exact<float> made(size);
    for (std::size_t i = 0; i < size; ++i) made.data[i] = scale * random_float();
    return made;
}

// A description that owns its weights.
struct Random {
    pcsr::NetworkDescription network;
    std::vector<Exact<float>> owned;

    void weight(const std::string& name, std::vector<std::int64_t> shape) {
        std::size_t size = 1, inputs = 1;
        for (std::size_t i = 0; i < shape.size(); ++i) {
            size *= shape[i];
            if (i > 0) inputs *= shape[i];
        }
        owned.push_back(random_floats(size, 1.7f / std::sqrt(static_cast<float>(inputs))));
        network.weights[name] = {owned.back().data.get(), std::move(shape)};
    }

    void head(const std::string& name, const Sizes& hidden, int outputs) {
        network.add_head(name, hidden, outputs);
        weight(name + ".first.table", {network.heads.back().channels, network.width});
        for (std::size_t i = 1; i <= hidden.size(); ++i) {
            const int out = i < hidden.size() ? hidden[i] : outputs;
            weight(name + ".layer" + std::to_string(i) + ".weight", {out, hidden[i - 1]});
            weight(name + ".layer" + std::to_string(i) + ".bias", {out});
        }
    }

    void heads(const Sizes& classifier, const std::vector<Sizes>& upsamplers) {
        head("classifier", classifier, upsamplers.size() == 2 ? 1 : static_cast<int>(upsamplers.size()));
        for (std::size_t j = 0; j < upsamplers.size(); ++j) head("upsampler_" + std::to_string(j), upsamplers[j], 3);
    }
};

using Open = std::unique_ptr<pcsr::Engine> (*)(const pcsr::NetworkDescription&);

// The instruction sets of this processor beside the plain one.
inline std::vector<std::pair<std::string, Open>> others() {
    std::vector<std::pair<std::string, Open>> found;
#ifdef PCSR_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.emplace_back("avx2", avx2::open);
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        found.emplace_back("avx512", avx512::open);
    }
#endif
    return found;
}

// A picture's geometry and tables for a network.
struct Scene {
    Exact<float> tables;
    Exact<std::int32_t> rows, columns;
    std::vector<Exact<float>> terms;
    std::vector<const float*> row_terms, column_terms;
    pcsr::Place place;
    pcsr::Tables window;
    pcsr::Region region;

    Scene(const pcsr::NetworkDescription& network, int h, int w, int H, int W)
        : tables(static_cast<std::size_t>(h) * w * network.row), rows(H), columns(W) {
        for (int y = 0; y < H; ++y) rows.data[y] = static_cast<std::int32_t>(static_cast<std::int64_t>(y) * h / H);
        for (int x = 0; x < W; ++x) columns.data[x] = static_cast<std::int32_t>(static_cast<std::int64_t>(x) * w / W);
        const std::int64_t stride = W + 64;
        for (std::size_t number = 0; number < network.heads.size(); ++number) {
            const pcsr::Head& head = network.heads[number];
            for (int pixel = 0; pixel < h * w; ++pixel) {
                for (int c = 0; c < head.channels; ++c) {
                    tables.data[static_cast<std::size_t>(pixel) * network.row + head.offset + c] = random_float();
                }
            }
            const std::size_t padded = pcsr::padded(head.channels);
            terms.push_back(random_floats(H * padded));
            row_terms.push_back(terms.back().data.get());
            terms.push_back(random_floats(number < 2 ? head.channels * stride : W * padded));
            column_terms.push_back(terms.back().data.get());
        }
        place = {rows.data.get(), columns.data.get(), row_terms.data(), column_terms.data(), stride};
        window = {tables.data.get(), {0, h, 0, w}};
        region = {0, H, 0, W};
    }
};

}  // namespace random_network
