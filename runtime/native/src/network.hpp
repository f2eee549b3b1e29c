// What a network is made of: sizes as in a bundle's manifest, and the weights of its safetensors file by name.
//
// Plain C++, the same for every instruction set; what is defined in network.cpp is compiled for the baseline alone.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace pcsr {

// Heads' parts of a table row begin at multiples of it: a cache line, and the widest vector.
constexpr int kRowUnit = 16;

constexpr int padded(int channels) { return (channels + kRowUnit - 1) / kRowUnit * kRowUnit; }

// Float32, row-major; belongs to the caller, who keeps it until what is made from it is made.
struct Weight {
    const float* data = nullptr;
    std::vector<std::int64_t> shape;
};

// One per-pixel network: the classifier or the upsampler of a class.
struct Head {
    std::string name;         // "classifier", "upsampler_0", …: the prefix of its weights
    std::vector<int> hidden;  // sizes of its hidden layers; empty: one linear layer
    int outputs = 0;          // 3 of an upsampler; of the classifier 1 for two classes, else one a class
    int channels = 0;         // of its table: the first hidden size, or the outputs
    int offset = 0;           // where its part of a table row begins: a multiple of kRowUnit
};

// A network that is right, and that there are no kernels for.
struct NoKernels : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

struct NetworkDescription {
    std::string backbone;                // "carn", "fsrcnn", "srresnet"
    int width = 0;                       // feature channels C
    std::map<std::string, int> options;  // of the manifest: "groups"; "s", "m"; "nb"
    float mean[3] = {};                  // what the backbone subtracts first, red, green, blue
    float std[3] = {1, 1, 1};            // and divides by
    std::vector<Head> heads;             // the classifier, then the upsamplers, lightest first
    int row = 0;                         // floats of a table row: all heads' channels, each padded
    std::map<std::string, Weight> weights;

    // Append a head and give it its part of the row.
    void add_head(const std::string& name, const std::vector<int>& hidden, int outputs);

    // A weight of this shape, every value finite. Throws std::invalid_argument naming it where it is missing or has
    // another shape.
    const float* weight(const std::string& name, std::initializer_list<std::int64_t> shape) const;

    // Whether there is a weight of the name.
    bool has(const std::string& name) const;

    // An option; throws std::invalid_argument where it is missing.
    int option(const std::string& name) const;
};

}  // namespace pcsr
