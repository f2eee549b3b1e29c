// The C interface that abi.py declares and library.py calls: plain structures and numbers, a status for every call, no
// exception.
//
// Everything that a structure here or its meaning changes raises PCSR_ABI, here and in abi.py.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "engine.hpp"
#include "network.hpp"

#define PCSR_ABI 5
#define PCSR_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Status : int { kDone = 0, kNoMemory = 1, kRefused = 2, kNotFinite = 3 };

constexpr std::size_t kMessage = 512;

// Run something that may throw; the message has kMessage bytes.
template <class Work>
int guarded(char* message, Work work) noexcept {
    message[0] = '\0';
    try {
        return work();
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    } catch (const std::exception& error) {
        std::snprintf(message, kMessage, "%s", error.what());
    } catch (...) {
        std::snprintf(message, kMessage, "an exception of unknown type");
    }
    return kRefused;
}

using Open = std::unique_ptr<pcsr::Engine> (*)(const pcsr::NetworkDescription&);

struct InstructionSet {
    const char* name;
    bool (*here)();
    Open open;
};

// Worst first. What is asked of the processor is what setup.py compiles for; the answer takes into account whether the
// operating system saves the registers.
const InstructionSet kInstructionSets[] = {
    {"scalar", [] { return true; }, scalar::open},
#ifdef PCSR_X86
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, avx2::open},
    {"avx512",
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("fma");
     },
     avx512::open},
#endif
};

}  // namespace

extern "C" {

struct pcsr_option {
    const char* name;
    std::int32_t value;
};

struct pcsr_weight {
    const char* name;
    const float* data;
    std::int32_t dimensions;
    std::int64_t shape[4];
};

struct pcsr_head {
    const char* name;
    const std::int32_t* hidden;
    std::int32_t hidden_layers;
    std::int32_t outputs;
};

struct pcsr_network {
    const char* backbone;
    std::int32_t width;
    float mean[3];
    float std[3];
    std::int32_t options_count;
    const pcsr_option* options;
    std::int32_t heads_count;
    const pcsr_head* heads;
    std::int32_t weights_count;
    const pcsr_weight* weights;
};

}  // extern "C"

PCSR_EXPORT int pcsr_abi() { return PCSR_ABI; }

// Those that run on this processor, worst first, with spaces between; what is too long for the buffer is cut off.
PCSR_EXPORT void pcsr_instruction_sets(char* names, std::size_t size) {
    if (size == 0) return;
    names[0] = '\0';
    for (const InstructionSet& each : kInstructionSets) {
        if (!each.here()) continue;
        const std::size_t used = std::strlen(names);
        std::snprintf(names + used, size - used, "%s%s", used ? " " : "", each.name);
    }
}

// The weights are copied into the form that kernels read. `row`: floats of a table row.
PCSR_EXPORT int pcsr_open(const char* instruction_set, const pcsr_network* network, void** engine, std::int32_t* row,
                          char* message) {
    return guarded(message, [&] {
        for (const InstructionSet& each : kInstructionSets) {
            if (std::strcmp(each.name, instruction_set) != 0 || !each.here()) continue;
            pcsr::NetworkDescription description;
            description.backbone = network->backbone;
            description.width = network->width;
            for (int i = 0; i < 3; ++i) {
                description.mean[i] = network->mean[i];
                description.std[i] = network->std[i];
            }
            for (int i = 0; i < network->options_count; ++i) {
                description.options[network->options[i].name] = network->options[i].value;
            }
            for (int i = 0; i < network->heads_count; ++i) {
                const pcsr_head& head = network->heads[i];
                description.add_head(head.name, {head.hidden, head.hidden + head.hidden_layers}, head.outputs);
            }
            for (int i = 0; i < network->weights_count; ++i) {
                const pcsr_weight& weight = network->weights[i];
                description.weights[weight.name] = {weight.data, {weight.shape, weight.shape + weight.dimensions}};
            }
            *engine = each.open(description).release();
            *row = description.row;
            return kDone;
        }
        throw std::invalid_argument(std::string("there is no instruction set ") + instruction_set + " here");
    });
}

PCSR_EXPORT void pcsr_close(void* engine) { delete static_cast<pcsr::Engine*>(engine); }

PCSR_EXPORT const char* pcsr_no_backbone(const void* engine) {
    return static_cast<const pcsr::Engine*>(engine)->no_backbone();
}

PCSR_EXPORT int pcsr_tables(const void* engine, const float* lr, std::int32_t h, std::int32_t w, float* tables,
                            std::int32_t threads, char* message) {
    return guarded(message, [&] {
        static_cast<const pcsr::Engine*>(engine)->tables(lr, h, w, tables, threads);
        return kDone;
    });
}

PCSR_EXPORT int pcsr_working_bytes(const void* engine, std::int32_t h, std::int32_t w, std::int32_t threads,
                                   std::int64_t* bytes, char* message) {
    return guarded(message, [&] {
        *bytes = static_cast<std::int64_t>(static_cast<const pcsr::Engine*>(engine)->working_bytes(h, w, threads));
        return kDone;
    });
}

PCSR_EXPORT int pcsr_probabilities(const void* engine, const pcsr::Tables* tables, const pcsr::Place* place,
                                   const pcsr::Region* region, float* out, char* message) {
    return guarded(message, [&] {
        const bool finite = static_cast<const pcsr::Engine*>(engine)->probabilities(*tables, *place, *region, out);
        return finite ? kDone : kNotFinite;
    });
}

PCSR_EXPORT int pcsr_residuals(const void* engine, const pcsr::Tables* tables, const pcsr::Place* place,
                               const pcsr::Region* region, const std::uint8_t* classes, float* out, char* message) {
    return guarded(message, [&] {
        const bool finite = static_cast<const pcsr::Engine*>(engine)->residuals(*tables, *place, *region, classes, out);
        return finite ? kDone : kNotFinite;
    });
}

PCSR_EXPORT int pcsr_finish(const void* engine, const pcsr::Patch* patch, float* residual, const std::uint8_t* classes,
                            char* message) {
    return guarded(message, [&] {
        static_cast<const pcsr::Engine*>(engine)->finish(*patch, residual, classes);
        return kDone;
    });
}

// Where it comes back with kNotFinite, `first` is the first such block; so for the next.
PCSR_EXPORT int pcsr_survey(const void* engine, const pcsr::Tables* tables, const pcsr::Place* place,
                            const pcsr::Spread* spread, float* out, std::int64_t stride, double* seconds,
                            std::int32_t* first, char* message) {
    return guarded(message, [&] {
        *first = static_cast<const pcsr::Engine*>(engine)->survey(*tables, *place, *spread, out, stride, seconds);
        return *first == spread->count ? kDone : kNotFinite;
    });
}

PCSR_EXPORT int pcsr_paint(const void* engine, const pcsr::Tables* tables, const pcsr::Place* place,
                           const pcsr::Patch* patch, const pcsr::Spread* spread, const pcsr::Painting* painting,
                           std::int32_t* first, char* message) {
    return guarded(message, [&] {
        *first = static_cast<const pcsr::Engine*>(engine)->paint(*tables, *place, *patch, *spread, *painting);
        return *first == spread->count ? kDone : kNotFinite;
    });
}

PCSR_EXPORT int pcsr_extremes(const void* engine, const float* values, std::int64_t n, float* found, char* message) {
    return guarded(message, [&] {
        static_cast<const pcsr::Engine*>(engine)->extremes(values, n, found);
        return kDone;
    });
}

PCSR_EXPORT int pcsr_histogram(const void* engine, const float* values, std::int64_t n, double low, double factor,
                               std::int32_t bins, std::int32_t threads, std::int64_t* counts, double* sums,
                               char* message) {
    return guarded(message, [&] {
        static_cast<const pcsr::Engine*>(engine)->histogram(values, n, {low, factor, bins}, threads, counts, sums);
        return kDone;
    });
}

PCSR_EXPORT int pcsr_inside(const void* engine, const float* values, std::int64_t n, double low, double factor,
                            std::int32_t bins, std::int32_t threads, const std::uint8_t* wanted, float* found,
                            char* message) {
    return guarded(message, [&] {
        static_cast<const pcsr::Engine*>(engine)->inside(values, n, {low, factor, bins}, threads, wanted, found);
        return kDone;
    });
}
