#include "paint.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <vector>

#include "finish.hpp"
#include "parallel.hpp"

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

// Of the pixels of a region, their classes by the painting's rule.
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
        const float* values = row;
        if (of_row != nullptr) {
            difficulties(of_row, outputs, columns, row + columns, row);
        } else {
            values = painting.difficulties + (region.top + y) * painting.difficulty_stride + region.left;
        }
        class_by_thresholds(values, columns, rule.thresholds, count - 1, classes + first);
    }
    return finite;
}

// What a thread has done.
struct Sums {
    explicit Sums(int classes) : counts(static_cast<std::size_t>(classes)) {}

    std::vector<std::int64_t> counts;
    // Of classifier, upsamplers, compose.
    double seconds[3] = {};
};

// The inner part of a block's classes, and how many pixels have each.
void map_classes(const std::uint8_t* classes, const pcsr::Patch& patch, std::uint8_t* map, std::int64_t stride, Sums& sums) {
    const pcsr::Region &region = patch.region, &inner = patch.inner;
    for (int y = 0; y < inner.rows(); ++y) {
        const std::uint8_t* from = classes + static_cast<std::size_t>(inner.top - region.top + y) * region.columns() +
                                   (inner.left - region.left);
        std::memcpy(map + y * stride, from, static_cast<std::size_t>(inner.columns()));
        for (std::size_t j = 0; j < sums.counts.size(); ++j) {
            sums.counts[j] += std::count(from, from + inner.columns(), static_cast<std::uint8_t>(j));
        }
    }
}

int sample_bytes(pcsr::Sample sample) {
    switch (sample) {
        case pcsr::Sample::byte: return 1;
        case pcsr::Sample::word: return 2;
        case pcsr::Sample::real: return 4;
    }
    return 0;
}

// What of a patch a block is: a patch itself.
pcsr::Patch part_of(const pcsr::Patch& whole, const pcsr::Region& inner) {
    const int margin = whole.refined ? 1 : 0;
    pcsr::Patch part = whole;
    part.inner = inner;
    // The patch's region ends either a margin beyond its inner one, or with the picture.
    part.region = {std::max(inner.top - margin, whole.region.top), std::min(inner.bottom + margin, whole.region.bottom),
                   std::max(inner.left - margin, whole.region.left), std::min(inner.right + margin, whole.region.right)};
    // Rows of the input are read as they are needed, but each in its whole width.
    part.lr_left = whole.low_columns[part.region.left];
    part.lr_columns = whole.high_columns[part.region.right - 1] + 1 - part.lr_left;
    part.lr = static_cast<const std::uint8_t*>(whole.lr) + (part.lr_left - whole.lr_left) * whole.lr_pixel;
    const std::int64_t pixel = whole.channels * sample_bytes(whole.sample);
    part.out = static_cast<std::uint8_t*>(whole.out) + (inner.top - whole.inner.top) * whole.out_stride +
               (inner.left - whole.inner.left) * pixel;
    return part;
}

bool survey_block(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
                  const pcsr::Region& region, float* out, std::int64_t stride) {
    const Workspaces::Lease lease(workspaces);
    Pieces& pieces = (*lease).planes;
    const int columns = region.columns(), outputs = heads.outputs();
    float* probabilities = pieces.get(kProbabilities, pixels(region) * static_cast<std::size_t>(outputs));
    float* scratch = pieces.get(kRow, 2 * static_cast<std::size_t>(columns));
    const bool finite = heads.probabilities(tables, place, region, probabilities);
    for (int y = 0; y < region.rows(); ++y) {
        const std::size_t first = static_cast<std::size_t>(y) * static_cast<std::size_t>(columns);
        difficulties(probabilities + first * static_cast<std::size_t>(outputs), outputs, columns, scratch,
                     out + (region.top + y) * stride + region.left);
    }
    return finite;
}

bool paint_block(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
                 const pcsr::Patch& patch, const pcsr::Painting& painting, std::uint8_t* class_map, Sums& sums) {
    const Workspaces::Lease lease(workspaces);
    Pieces& pieces = (*lease).planes;
    const pcsr::Region& region = patch.region;
    const std::size_t n = pixels(region);
    std::uint8_t* classes = reinterpret_cast<std::uint8_t*>(pieces.get(kClasses, (n + sizeof(float) - 1) / sizeof(float)));
    float* residuals = pieces.get(kResiduals, 3 * n);
    Stopwatch watch;
    bool finite = classify(heads, pieces, tables, place, region, painting, classes);
    sums.seconds[0] += watch.lap();
    finite = heads.residuals(tables, place, region, classes, residuals) && finite;
    sums.seconds[1] += watch.lap();
    finish(patch, residuals, classes);
    map_classes(classes, patch, class_map, painting.class_stride, sums);
    sums.seconds[2] += watch.lap();
    return finite;
}

// Do something to every block: work(block, sums of the thread) says whether it is finite. Returns the first that is not.
template <class Work>
int each_block(const pcsr::Spread& spread, std::vector<Sums>& of_threads, const Work& work) {
    std::atomic<int> first{spread.count};
    for_each_unit(static_cast<int>(of_threads.size()), spread.count, [&](int thread, int number) {
        // Those before it have been taken by then: blocks are taken in order.
        if (number > first.load(std::memory_order_relaxed)) return;
        if (work(spread.blocks[number], of_threads[static_cast<std::size_t>(thread)])) return;
        int known = first.load(std::memory_order_relaxed);
        while (number < known && !first.compare_exchange_weak(known, number, std::memory_order_relaxed)) {
        }
    });
    return first;
}

std::vector<Sums> sums_of_threads(const pcsr::Spread& spread, int classes) {
    return std::vector<Sums>(static_cast<std::size_t>(std::max(1, std::min(spread.threads, spread.count))), Sums(classes));
}

}  // namespace

int survey(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
           const pcsr::Spread& spread, float* out, std::int64_t stride, double* seconds) {
    std::vector<Sums> of_threads = sums_of_threads(spread, 0);
    const int first = each_block(spread, of_threads, [&](const pcsr::Region& block, Sums& sums) {
        Stopwatch watch;
        const bool finite = survey_block(heads, workspaces, tables, place, block, out, stride);
        sums.seconds[0] += watch.lap();
        return finite;
    });
    *seconds = 0;
    for (const Sums& sums : of_threads) *seconds += sums.seconds[0];
    return first;
}

int paint(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
          const pcsr::Patch& patch, const pcsr::Spread& spread, const pcsr::Painting& painting) {
    std::vector<Sums> of_threads = sums_of_threads(spread, heads.classes());
    const int first = each_block(spread, of_threads, [&](const pcsr::Region& block, Sums& sums) {
        std::uint8_t* class_map = painting.class_map + (block.top - patch.inner.top) * painting.class_stride +
                                  (block.left - patch.inner.left);
        return paint_block(heads, workspaces, tables, place, part_of(patch, block), painting, class_map, sums);
    });
    std::fill_n(painting.counts, heads.classes(), 0);
    std::fill_n(painting.seconds, 3, 0.0);
    for (const Sums& sums : of_threads) {
        for (std::size_t j = 0; j < sums.counts.size(); ++j) painting.counts[j] += sums.counts[j];
        for (std::size_t stage = 0; stage < 3; ++stage) painting.seconds[stage] += sums.seconds[stage];
    }
    return first;
}

}  // namespace PCSR_ISA
