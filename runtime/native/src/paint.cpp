#include "paint.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>

#include "finish.hpp"

namespace PCSR_ISA {
namespace {

std::size_t pixels(const pcsr::Region& region) {
    return static_cast<std::size_t>(region.rows()) * static_cast<std::size_t>(region.columns());
}

// Never inlined, so that no compiler makes one rounding of two: difficulties are compared with thresholds that others
// compute, and rounded at every step.
__attribute__((noinline)) void multiply(float factor, const float* values, int n, float* products) {
    for (int i = 0; i < n; ++i) products[i] = factor * values[i];
}
__attribute__((noinline)) void add(const float* values, int n, float* sums) {
    for (int i = 0; i < n; ++i) sums[i] += values[i];
}

// Expected class of each pixel of a row; see difficulty in decision.py.
void difficulties(const float* probabilities, int outputs, int columns, float* scratch, float* out) {
    std::copy_n(probabilities + (outputs == 1 ? 0 : columns), columns, out);
    for (int j = 2; j < outputs; ++j) {
        multiply(static_cast<float>(j), probabilities + static_cast<std::size_t>(j) * columns, columns, scratch);
        add(scratch, columns, out);
    }
}

void class_by_thresholds(const float* values, int columns, const float* thresholds, int count, std::uint8_t* classes) {
    std::memset(classes, 0, static_cast<std::size_t>(columns));
    for (int j = 0; j < count; ++j) {
        const float threshold = thresholds[j];
        for (int x = 0; x < columns; ++x) classes[x] = static_cast<std::uint8_t>(classes[x] + (values[x] >= threshold));
    }
}

// On a tie the lighter class.
void class_by_weights(const float* probabilities, int columns, const float* weights, int count, float* best,
                      std::uint8_t* classes) {
    std::memset(classes, 0, static_cast<std::size_t>(columns));
    multiply(weights[0], probabilities, columns, best);
    for (int j = 1; j < count; ++j) {
        const float* of_class = probabilities + static_cast<std::size_t>(j) * columns;
        const float weight = weights[j];
        for (int x = 0; x < columns; ++x) {
            const float weighted = weight * of_class[x];
            const bool better = weighted > best[x];
            best[x] = better ? weighted : best[x];
            classes[x] = better ? static_cast<std::uint8_t>(j) : classes[x];
        }
    }
}

class Stopwatch {
   public:
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        const double passed = std::chrono::duration<double>(now - since_).count();
        since_ = now;
        return passed;
    }

   private:
    std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
};

// Memory of a block, of a workspace.
enum Piece : std::size_t { kProbabilities, kRow, kClasses, kResiduals };

// Classes of all pixels of a region, (rows, columns). Says whether everything was finite.
bool classify(const Heads& heads, Pieces& pieces, const pcsr::Tables& tables, const pcsr::Place& place,
              const pcsr::Region& region, const pcsr::Painting& painting, std::uint8_t* classes) {
    const int columns = region.columns(), outputs = heads.outputs(), count = heads.classes();
    const pcsr::Rule& rule = painting.rule;
    const float* probabilities = nullptr;
    bool finite = true;
    if (painting.difficulties == nullptr) {
        float* room = pieces.get(kProbabilities, pixels(region) * static_cast<std::size_t>(outputs));
        finite = heads.probabilities(tables, place, region, room);
        probabilities = room;
    }
    float* row = pieces.get(kRow, 2 * static_cast<std::size_t>(columns));
    for (int y = 0; y < region.rows(); ++y) {
        const std::size_t first = static_cast<std::size_t>(y) * static_cast<std::size_t>(columns);
        const float* of_row = probabilities ? probabilities + first * static_cast<std::size_t>(outputs) : nullptr;
        if (rule.weights != nullptr) {
            class_by_weights(of_row, columns, rule.weights, count, row, classes + first);
            continue;
        }
        const float* values = painting.difficulties + y * painting.difficulty_stride;
        if (of_row != nullptr) {
            difficulties(of_row, outputs, columns, row + columns, row);
            values = row;
        }
        class_by_thresholds(values, columns, rule.thresholds, count - 1, classes + first);
    }
    return finite;
}

// The inner part of a block's classes, and how many pixels have each.
void map_classes(const std::uint8_t* classes, int classes_count, const pcsr::Patch& patch, const pcsr::Painting& painting) {
    const pcsr::Region &region = patch.region, &inner = patch.inner;
    std::fill_n(painting.counts, classes_count, 0);
    for (int y = 0; y < inner.rows(); ++y) {
        const std::uint8_t* from = classes + static_cast<std::size_t>(inner.top - region.top + y) * region.columns() +
                                   (inner.left - region.left);
        std::memcpy(painting.class_map + y * painting.class_stride, from, static_cast<std::size_t>(inner.columns()));
        for (int j = 0; j < classes_count; ++j) {
            painting.counts[j] += std::count(from, from + inner.columns(), static_cast<std::uint8_t>(j));
        }
    }
}

}  // namespace

bool survey(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
            const pcsr::Region& region, float* out, std::int64_t stride) {
    const Workspaces::Lease lease(workspaces);
    Pieces& pieces = (*lease).planes;
    const int columns = region.columns(), outputs = heads.outputs();
    float* probabilities = pieces.get(kProbabilities, pixels(region) * static_cast<std::size_t>(outputs));
    float* scratch = pieces.get(kRow, 2 * static_cast<std::size_t>(columns));
    const bool finite = heads.probabilities(tables, place, region, probabilities);
    for (int y = 0; y < region.rows(); ++y) {
        const std::size_t first = static_cast<std::size_t>(y) * static_cast<std::size_t>(columns);
        difficulties(probabilities + first * static_cast<std::size_t>(outputs), outputs, columns, scratch, out + y * stride);
    }
    return finite;
}

bool paint(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
           const pcsr::Patch& patch, const pcsr::Painting& painting) {
    const Workspaces::Lease lease(workspaces);
    Pieces& pieces = (*lease).planes;
    const pcsr::Region& region = patch.region;
    const std::size_t n = pixels(region);
    std::uint8_t* classes = reinterpret_cast<std::uint8_t*>(pieces.get(kClasses, (n + sizeof(float) - 1) / sizeof(float)));
    float* residuals = pieces.get(kResiduals, 3 * n);
    Stopwatch watch;
    bool finite = classify(heads, pieces, tables, place, region, painting, classes);
    painting.seconds[0] = watch.lap();
    finite = heads.residuals(tables, place, region, classes, residuals) && finite;
    painting.seconds[1] = watch.lap();
    finish(patch, residuals, classes);
    map_classes(classes, heads.classes(), patch, painting);
    painting.seconds[2] = watch.lap();
    return finite;
}

}  // namespace PCSR_ISA
