// Times of the parts of the native kernels, of one instruction set, beside the peak of multiply-adds: what
// bench_kernels.py reads.
//
//     bench_kernels THREADS ROUNDS
//
// The first lines name the parts, with the multiply-adds of a call (none is padding), those that the direct form would
// take for the same result, and the input or output pixels of a call. After an empty line each is a round: the peak in
// multiply-adds a second, then a call's seconds of each part, all threads at the same time doing the same.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backbone.hpp"
#include "direct.hpp"
#include "heads.hpp"
#include "pages.hpp"
#include "peaks.hpp"
#include "pointwise.hpp"
#include "rings.hpp"
#include "table_layer.hpp"
#include "winograd.hpp"

namespace {

using namespace PCSR_ISA;

// The picture of docs/performance.md, four times as large on each side.
constexpr int kHeight = 276, kWidth = 420, kScale = 4;
constexpr int kChannels = 52, kGroups = 4, kTrunkChannels = 64;
// Of the peak and of each part, in a round, the best of some tries; one takes about so long.
constexpr int kTries = 3;
constexpr double kSeconds = 1e-3;

struct Part {
    const char* name;
    double multiply_adds, direct;
    double pixels;
    std::function<void(int thread)> call;
    int threads;  // that call it at the same time; one where it starts threads itself
};

float random_float() {
    static std::uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
}

std::vector<float> random_floats(std::size_t count, float scale = 1.0f) {
    std::vector<float> made(count);
    for (float& each : made) each = scale * random_float();
    return made;
}

// CARN with random weights, about as large as they keep features.
class Network {
   public:
    Network() {
        description.backbone = "carn";
        description.width = kChannels;
        description.options["groups"] = kGroups;
        description.add_head("classifier", {10, 10}, 1);
        description.add_head("upsampler_0", {20, 20, 20}, 3);
        description.add_head("upsampler_1", {74, 74, 74, 74}, 3);
        for (const pcsr::Head& head : description.heads) {
            add(head.name + ".first.table", {head.channels, kChannels});
            for (std::size_t i = 1; i <= head.hidden.size(); ++i) {
                const int outputs = i < head.hidden.size() ? head.hidden[i] : head.outputs;
                add(head.name + ".layer" + std::to_string(i) + ".weight", {outputs, head.hidden[i - 1]});
                add(head.name + ".layer" + std::to_string(i) + ".bias", {outputs});
            }
        }
        convolution("backbone.entry", 3, 3);
        for (int b = 1; b <= 3; ++b) {
            const std::string block = "backbone.block" + std::to_string(b);
            convolution(block + ".unit.conv1", kChannels / kGroups, 3);
            convolution(block + ".unit.conv2", kChannels / kGroups, 3);
            convolution(block + ".unit.conv3", kChannels, 1);
            cascade("backbone", b);
            for (int j = 1; j <= 3; ++j) cascade(block, j);
        }
    }

    pcsr::NetworkDescription description;

   private:
    void add(const std::string& name, std::vector<std::int64_t> shape) {
        std::size_t size = 1;
        for (const std::int64_t side : shape) size *= static_cast<std::size_t>(side);
        const std::size_t inputs = size / static_cast<std::size_t>(shape[0]);
        owned_.push_back(random_floats(size, 1.7f / std::sqrt(static_cast<float>(inputs))));
        description.weights[name] = {owned_.back().data(), std::move(shape)};
    }

    void convolution(const std::string& name, int inputs, int kernel) {
        add(name + ".weight", {kChannels, inputs, kernel, kernel});
        add(name + ".bias", {kChannels});
    }

    void cascade(const std::string& name, int step) {
        const std::string prefix = name + ".cascade" + std::to_string(step);
        for (int i = 0; i <= step; ++i) add(prefix + ".weight" + std::to_string(i), {kChannels, kChannels});
        add(prefix + ".bias", {kChannels});
    }

    std::vector<std::vector<float>> owned_;
};

// Rows of a strip of the picture, as many as a pass of CARN has between its layers of each kind, for each thread.
struct RowsOfThreads {
    static constexpr int kRows = kSlab + 2;

    RowsOfThreads(int threads, int rings, int channels, int tiles) : tiles(tiles) {
        Arena counting(nullptr);
        for (int i = 0; i < rings; ++i) Ring(counting, kRows, channels, tiles);
        for (int thread = 0; thread < threads; ++thread) {
            memory.emplace_back(counting.used());
            for (std::size_t i = 0; i < counting.used(); ++i) memory.back().data()[i] = random_float();
            Arena arena(memory.back().data());
            rings_of.emplace_back();
            for (int i = 0; i < rings; ++i) rings_of.back().emplace_back(arena, kRows, channels, tiles);
        }
    }

    int columns() const { return kPhases * tiles; }
    double pixels() const { return static_cast<double>(kRows) * columns(); }
    float* row(int thread, int ring, int y) const { return rings_of[thread][ring].row(y); }

    int tiles;
    std::vector<Pages> memory;
    std::vector<std::vector<Ring>> rings_of;
};

Part pointwise_part(const char* name, const RowsOfThreads& rows, int parts, int threads) {
    const std::vector<float> weights = random_floats(static_cast<std::size_t>(parts) * kChannels * kChannels, 0.1f);
    std::vector<const float*> of_parts;
    for (int part = 0; part < parts; ++part) of_parts.push_back(&weights[static_cast<std::size_t>(part) * kChannels * kChannels]);
    const auto convolution = std::make_shared<Pointwise>(of_parts, random_floats(kChannels).data(), kChannels, kChannels);
    const double work = rows.pixels() * parts * kChannels * kChannels;
    return {name, work, work, rows.pixels(), [&rows, convolution, parts](int thread) {
                for (int y = 0; y < RowsOfThreads::kRows; ++y) {
                    const float* in[Pointwise::kMostParts];
                    for (int part = 0; part < parts; ++part) in[part] = rows.row(thread, part, y);
                    // The one of a single part ends a residual unit.
                    const float* residual = parts == 1 ? rows.row(thread, 1, y) : nullptr;
                    convolution->row(in, residual, kRectified, rows.row(thread, Pointwise::kMostParts, y), rows.tiles);
                }
            }, threads};
}

// The three steps of a slab, and the slab.
void add_winograd_parts(std::vector<Part>& parts, const char* const (&names)[4], const RowsOfThreads& rows, int channels,
                        int groups, int threads) {
    const std::vector<float> weights = random_floats(static_cast<std::size_t>(channels) * channels / groups * 9, 0.1f);
    const auto convolution =
        std::make_shared<Winograd>(weights.data(), random_floats(channels).data(), channels, channels, groups);
    const auto scratch = std::make_shared<std::vector<Pages>>();
    for (int thread = 0; thread < threads; ++thread) scratch->emplace_back(convolution->scratch());
    const double pixels = kSlab * rows.columns();
    const double direct = pixels * channels * channels / groups * 9;
    const double products = direct / (9 * kTileOutputs * kTileOutputs) * kFrequencies;
    struct Pointers {
        const float* in[kTileInputs];
        float* out[kTileOutputs];
    };
    const auto pointers = [&rows](int thread) {
        Pointers made;
        for (int i = 0; i < kTileInputs; ++i) made.in[i] = rows.row(thread, 0, i);
        for (int i = 0; i < kTileOutputs; ++i) made.out[i] = rows.row(thread, 1, i);
        return made;
    };
    const auto each = [groups, tiles = rows.tiles](const auto& step) {
        for (int g = 0; g < groups; ++g) {
            for (int tile = 0; tile < tiles; tile += kLanes) step(g, tile);
        }
    };
    // Its own: zeros stay zeros, where products in place of what they are made from would become denormal.
    const auto zeros = std::make_shared<std::vector<Pages>>();
    for (int thread = 0; thread < threads; ++thread) zeros->emplace_back(convolution->scratch());
    parts.push_back({names[0], products, direct, pixels, [=](int thread) {
                         each([&](int g, int) { convolution->multiply(g, (*zeros)[thread].data()); });
                     }, threads});
    parts.push_back({names[1], 0, 0, pixels, [=, &rows](int thread) {
                         const Pointers at = pointers(thread);
                         each([&](int g, int tile) {
                             convolution->transform_inputs(g, at.in, tile, rows.tiles, (*scratch)[thread].data());
                         });
                     }, threads});
    parts.push_back({names[2], 0, 0, pixels, [=, &rows](int thread) {
                         const Pointers at = pointers(thread);
                         each([&](int g, int tile) {
                             convolution->transform_outputs(g, (*scratch)[thread].data(), kRectified, at.out, tile,
                                                            rows.tiles);
                         });
                     }, threads});
    parts.push_back({names[3], products, direct, pixels, [=, &rows](int thread) {
                         const Pointers at = pointers(thread);
                         convolution->slab(at.in, kRectified, at.out, rows.tiles, (*scratch)[thread].data());
                     }, threads});
}

// A block of output pixels at four times the size, all of one class.
class Block {
   public:
    static constexpr int kRows = 16, kColumns = 2048;

    explicit Block(const pcsr::NetworkDescription& network)
        : tables_(random_floats(static_cast<std::size_t>(kRows / kScale) * kColumns / kScale * network.row)) {
        for (int y = 0; y < kRows; ++y) nearest_rows_.push_back(y / kScale);
        for (int x = 0; x < kColumns; ++x) nearest_columns_.push_back(x / kScale);
        constexpr int stride = kColumns + 64;
        for (std::size_t number = 0; number < network.heads.size(); ++number) {
            const pcsr::Head& head = network.heads[number];
            const std::size_t padded = static_cast<std::size_t>(pcsr::padded(head.channels));
            terms_.push_back(random_floats(kRows * padded));
            row_terms_.push_back(terms_.back().data());
            terms_.push_back(random_floats(number < 2 ? static_cast<std::size_t>(head.channels) * stride : kColumns * padded));
            column_terms_.push_back(terms_.back().data());
        }
        place = {nearest_rows_.data(), nearest_columns_.data(), row_terms_.data(), column_terms_.data(), stride};
        tables = {tables_.data(), {0, kRows / kScale, 0, kColumns / kScale}};
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    pcsr::Place place;
    pcsr::Tables tables;
    pcsr::Region region{0, kRows, 0, kColumns};
    std::vector<std::uint8_t> light = std::vector<std::uint8_t>(kRows * kColumns, 0);
    std::vector<std::uint8_t> heavy = std::vector<std::uint8_t>(kRows * kColumns, 1);

   private:
    std::vector<float> tables_;
    std::vector<std::int32_t> nearest_rows_, nearest_columns_;
    std::vector<std::vector<float>> terms_;
    std::vector<const float*> row_terms_, column_terms_;
};

// Of the layers behind the first.
double multiply_adds(const pcsr::Head& head) {
    double sum = 0;
    for (std::size_t i = 1; i <= head.hidden.size(); ++i) {
        sum += static_cast<double>(head.hidden[i - 1]) * (i < head.hidden.size() ? head.hidden[i] : head.outputs);
    }
    return sum;
}

// Of CARN, for an input pixel, tables included; `winograd`: with its products in place of the 3x3 convolutions of units.
double backbone_multiply_adds(const pcsr::NetworkDescription& network, bool winograd) {
    const double pairs = static_cast<double>(kChannels) * kChannels;
    const double taps = winograd ? static_cast<double>(kFrequencies) / (kTileOutputs * kTileOutputs) : 9;
    const double unit = 2 * taps * pairs / kGroups + pairs, cascade = (2 + 3 + 4) * pairs;
    double tables = 0;
    for (const pcsr::Head& head : network.heads) tables += static_cast<double>(kChannels) * head.channels;
    return 9.0 * 3 * kChannels + 3 * (3 * unit + cascade) + cascade + tables;
}

double seconds_of(const Part& part, int calls) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kTries; ++i) {
        best = std::min(best, peaks::seconds(part.threads, [&](int thread) {
                            for (int call = 0; call < calls; ++call) part.call(thread);
                        }));
    }
    return best / calls;
}

}  // namespace

int main(int count, char** arguments) {
    const int threads = count == 3 ? std::atoi(arguments[1]) : 0, rounds = count == 3 ? std::atoi(arguments[2]) : 0;
    if (threads < 1 || rounds < 1) return 2;

    const Network network;
    const pcsr::NetworkDescription& description = network.description;
    const int tiles = Cut(kHeight, kWidth, 6).most_tiles;
    std::vector<Part> parts;

    const RowsOfThreads rows(threads, Pointwise::kMostParts + 1, kChannels, tiles);
    const char* const names[Pointwise::kMostParts] = {"1x1 of one tensor, and the residual", "1x1 of two tensors",
                                                      "1x1 of three tensors", "1x1 of four tensors"};
    for (int i = 0; i < Pointwise::kMostParts; ++i) parts.push_back(pointwise_part(names[i], rows, i + 1, threads));
    add_winograd_parts(parts,
                       {"Winograd 4 x 13: product", "Winograd 4 x 13: input transform",
                        "Winograd 4 x 13: output transform", "Winograd 4 x 13"},
                       rows, kChannels, kGroups, threads);
    const RowsOfThreads trunk_rows(threads, 2, kTrunkChannels, tiles);
    add_winograd_parts(parts,
                       {"Winograd 64: product", "Winograd 64: input transform", "Winograd 64: output transform",
                        "Winograd 64"},
                       trunk_rows, kTrunkChannels, 1, threads);

    const Direct entry(random_floats(kChannels * 3 * 9).data(), random_floats(kChannels).data(), 3, kChannels, 1, 3);
    const double entry_work = rows.columns() * 9.0 * 3 * kChannels;
    parts.push_back({"entry", entry_work, entry_work, static_cast<double>(rows.columns()), [&](int thread) {
                         const float* in[3];
                         for (int i = 0; i < 3; ++i) in[i] = rows.row(thread, 0, i);
                         entry.row({in, tiles}, kIdentity, rows.row(thread, 1, 0), tiles);
                     }, threads});

    const TableLayer table_layer(description);
    std::vector<Pages> table_rows;
    for (int thread = 0; thread < threads; ++thread) {
        table_rows.emplace_back(static_cast<std::size_t>(rows.columns()) * description.row);
    }
    const Strip strip{1, rows.columns() - 2, 0, 1, 0, rows.columns() - 2, -1, tiles, 0};
    double table_work = 0;
    for (const pcsr::Head& head : description.heads) table_work += static_cast<double>(strip.w) * kChannels * head.channels;
    parts.push_back({"tables", table_work, table_work, static_cast<double>(strip.w), [&](int thread) {
                         table_layer.row(strip, rows.row(thread, 0, 0), 0, table_rows[thread].data());
                     }, threads});

    const Heads heads(description);
    const Block block(description);
    const double pixels = static_cast<double>(Block::kRows) * Block::kColumns;
    std::vector<std::vector<float>> results(threads, std::vector<float>(3 * Block::kRows * Block::kColumns));
    const auto head_part = [&](const char* name, int head, auto run) {
        const double work = pixels * multiply_adds(description.heads[head]);
        parts.push_back({name, work, work, pixels, run, threads});
    };
    head_part("classifier", 0, [&](int thread) {
        heads.probabilities(block.tables, block.place, block.region, results[thread].data());
    });
    head_part("light upsampler", 1, [&](int thread) {
        heads.residuals(block.tables, block.place, block.region, block.light.data(), results[thread].data());
    });
    head_part("heavy upsampler", 2, [&](int thread) {
        heads.residuals(block.tables, block.place, block.region, block.heavy.data(), results[thread].data());
    });

    struct Free {
        void operator()(Backbone* backbone) const { free_backbone(backbone); }
    };
    const std::unique_ptr<Backbone, Free> backbone(make_backbone(description));
    const std::vector<float> lr = random_floats(3 * kHeight * kWidth);
    const double picture = static_cast<double>(kHeight) * kWidth;
    Pages tables(static_cast<std::size_t>(kHeight) * kWidth * description.row);
    // All threads share one: divided by them it compares with the others.
    parts.push_back({"CARN's backbone", picture * backbone_multiply_adds(description, true) / threads,
                     picture * backbone_multiply_adds(description, false) / threads, picture / threads,
                     [&](int) { run_backbone(*backbone, lr.data(), kHeight, kWidth, tables.data(), threads); }, 1});

    std::vector<int> calls;
    for (const Part& part : parts) {
        calls.push_back(std::max(1, static_cast<int>(kSeconds / seconds_of(part, 1))));
        std::printf("%s\t%.17g\t%.17g\t%.17g\n", part.name, part.multiply_adds, part.direct, part.pixels);
    }
    std::printf("\n");
    for (int round = 0; round < rounds; ++round) {
        std::printf("%.9g", peaks::operations<Vec>(threads, kTries) / 2);
        for (std::size_t i = 0; i < parts.size(); ++i) std::printf("\t%.9g", seconds_of(parts[i], calls[i]));
        std::printf("\n");
    }
}
