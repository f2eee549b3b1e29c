#include "heads.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "buffer.hpp"
#include "lanes.hpp"

namespace PCSR_ISA {
namespace {

// Where the first layer's sums of a group of pixels become the input of the others.
PCSR_INLINE Vec activated(Vec sum, bool hidden) { return hidden ? relu(sum) : sum; }

// From here on, 0 times a value is added for each: what is not finite stays seen, as NaN.
PCSR_INLINE Vec watch(Vec seen, Vec value) { return multiply_add(value, broadcast(0.0f), seen); }

PCSR_INLINE Vec sigmoid(Vec x) { return broadcast(1.0f) / (broadcast(1.0f) + exponential(broadcast(0.0f) - x)); }

void softmax(float* values, int outputs, int vector) {
    float* at = values + vector * kLanes;
    Vec highest = load(at);
    for (int j = 1; j < outputs; ++j) highest = maximum(highest, load(at + j * kPixels));
    Vec sum = broadcast(0.0f);
    for (int j = 0; j < outputs; ++j) {
        const Vec power = exponential(load(at + j * kPixels) - highest);
        store(at + j * kPixels, power);
        sum = sum + power;
    }
    for (int j = 0; j < outputs; ++j) store(at + j * kPixels, load(at + j * kPixels) / sum);
}

// Output columns that are computed at once, seen from the input: vectors of them begin at `base` input columns from
// `first`, and their lanes at `lanes` from there. Nearly always there are kPixels of them, or all that are left; where
// the input is some ten thousand columns wide and hardly enlarged, float32 skips an input column now and then, so that
// a vector may reach further than it is wide: there the group ends.
struct Group {
    int left, columns, first, inputs;
    int base[kVectors];
    std::int32_t lanes[kVectors][kLanes];

    Group(const std::int32_t* nearest, int left, int right)
        : left(left), columns(std::min(right - left, kPixels)), first(nearest[left]) {
        for (int v = 0; v < kVectors; ++v) {
            for (int i = 0; i < kLanes; ++i) {
                const int x = v * kLanes + i;
                if (x < columns) {
                    const std::int32_t at = nearest[left + x] - first;
                    if (i == 0) base[v] = at;
                    if (at >= kPixels || at - base[v] >= kLanes) columns = x;
                }
                // Lanes beyond the last column repeat it.
                const std::int32_t at = nearest[left + std::min(x, columns - 1)] - first;
                if (i == 0) base[v] = at;
                lanes[v][i] = at - base[v];
            }
        }
        inputs = nearest[left + columns - 1] - first + 1;
    }
};

// A row of the table, transposed: (channels, kPixels) of the input columns of a group. Returns what was seen.
Vec transposed_table(const float* table, int row, int inputs, int channels, float* out, Vec seen) {
    for (int j = 0; j < inputs; j += kLanes) {
        for (int c = 0; c < channels; c += kLanes) {
            Vec square[kLanes];
            PCSR_UNROLL
            for (int i = 0; i < kLanes; ++i) {
                square[i] = load(table + static_cast<std::size_t>(std::min(j + i, inputs - 1)) * row + c);
                seen = watch(seen, square[i]);
            }
            transpose(square);
            PCSR_UNROLL
            for (int i = 0; i < kLanes; ++i) store(out + (c + i) * kPixels + j, square[i]);
        }
    }
    return seen;
}

PCSR_INLINE Vec permuted(Vec values, const std::int32_t* lanes) {
#if PCSR_LANES > 1
    Mask index;
    std::memcpy(&index, lanes, sizeof index);
    return permute(values, index);
#else
    (void)lanes;
    return values;
#endif
}

// The sum of table and column terms, the same for all output rows of an input row.
void expanded(const float* transposed, const Group& group, const float* terms, std::int64_t stride, int channels, float* out) {
    for (int c = 0; c < channels; ++c) {
        PCSR_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            const Vec table = permuted(load(transposed + c * kPixels + group.base[v]), group.lanes[v]);
            store(out + c * kPixels + v * kLanes, table + load(terms + c * stride + group.left + v * kLanes));
        }
    }
}

}  // namespace

Heads::Heads(const pcsr::NetworkDescription& network) : row_(network.row) {
    if (network.heads.size() < 3) throw std::invalid_argument("a network has a classifier and two upsamplers or more");
    for (const pcsr::Head& head : network.heads) parts_.push_back(Part{head, Perceptron(network, head)});
}

bool Heads::dense(std::size_t number, Ending ending, const pcsr::Tables& tables, const pcsr::Place& place,
                  const pcsr::Region& region, const std::uint8_t* classes, float* out) const {
    const pcsr::Head& head = parts_[number].head;
    const Perceptron& layers = parts_[number].layers;
    const int channels = head.channels, outputs = head.outputs, padded = pcsr::padded(channels);
    const int columns = region.columns();
    const float* row_terms = place.row_terms[number];
    const std::size_t first = static_cast<std::size_t>(padded) * kPixels;
    const std::size_t widest = static_cast<std::size_t>(layers.widest()) * kPixels;
    // The last vector may begin at the last input column.
    Buffer transposed(first + kLanes), sums(first), front(widest), back(widest);
    Vec seen = broadcast(0.0f);
    for (int left = region.left; left < region.right;) {
        const Group group(place.nearest_columns, left, region.right);
        int expanded_row = -1;
        for (int y = region.top; y < region.bottom; ++y) {
            const std::size_t at = static_cast<std::size_t>(y - region.top);
            if (classes != nullptr) {
                const std::uint8_t* from = classes + at * columns + (left - region.left);
                if (std::memchr(from, 0, group.columns) == nullptr) continue;
            }
            if (place.nearest_rows[y] != expanded_row) {
                expanded_row = place.nearest_rows[y];
                const std::size_t pixel =
                    static_cast<std::size_t>(expanded_row - tables.window.top) * tables.window.columns() +
                    (group.first - tables.window.left);
                seen = transposed_table(tables.data + pixel * row_ + head.offset, row_, group.inputs, padded,
                                        transposed.data(), seen);
                expanded(transposed.data(), group, place.column_terms[number], place.column_stride, channels, sums.data());
            }
            const float* terms = row_terms + static_cast<std::size_t>(y) * padded;
            for (int c = 0; c < channels; ++c) {
                const Vec term = broadcast(terms[c]);
                PCSR_UNROLL
                for (int v = 0; v < kVectors; ++v) {
                    const std::size_t where = static_cast<std::size_t>(c) * kPixels + v * kLanes;
                    store(front.data() + where, activated(load(sums.data() + where) + term, layers.hidden()));
                }
            }
            float* found = layers.run(front.data(), back.data());
            for (int v = 0; v < kVectors; ++v) {
                for (int j = 0; j < outputs; ++j) {
                    float* values = found + j * kPixels + v * kLanes;
                    seen = watch(seen, load(values));
                    if (ending == Ending::sigmoid) store(values, sigmoid(load(values)));
                }
                if (ending == Ending::softmax) softmax(found, outputs, v);
            }
            for (int j = 0; j < outputs; ++j) {
                std::memcpy(out + (at * outputs + j) * columns + (left - region.left), found + j * kPixels,
                            group.columns * sizeof(float));
            }
        }
        left += group.columns;
    }
    return !any_not_zero(seen);
}

bool Heads::sparse(std::size_t number, const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Region& region,
                   const std::uint8_t* classes, float* out) const {
    const pcsr::Head& head = parts_[number].head;
    const Perceptron& layers = parts_[number].layers;
    const int padded = pcsr::padded(head.channels), columns = region.columns();
    // The class of the upsampler: the classifier comes before them.
    const std::uint8_t wanted = static_cast<std::uint8_t>(number - 1);
    Buffer front(static_cast<std::size_t>(std::max(padded, layers.widest())) * kPixels);
    Buffer back(static_cast<std::size_t>(layers.widest()) * kPixels);
    Vec seen = broadcast(0.0f);
    // Of each pixel of a group its table row, its terms, and its place in the block.
    const float *table[kPixels], *row_term[kPixels], *column_term[kPixels];
    std::size_t target[kPixels];
    int n = 0;
    const auto run = [&] {
        for (int i = n; i < kPixels; ++i) {
            table[i] = table[n - 1];
            row_term[i] = row_term[n - 1];
            column_term[i] = column_term[n - 1];
        }
        for (int c = 0; c < padded; c += kLanes) {
            for (int v = 0; v < kVectors; ++v) {
                Vec square[kLanes];
                PCSR_UNROLL
                for (int i = 0; i < kLanes; ++i) {
                    const int pixel = v * kLanes + i;
                    const Vec feature = load(table[pixel] + c);
                    seen = watch(seen, feature);
                    const Vec sum = feature + load(column_term[pixel] + c) + load(row_term[pixel] + c);
                    square[i] = activated(sum, layers.hidden());
                }
                transpose(square);
                PCSR_UNROLL
                for (int i = 0; i < kLanes; ++i) store(front.data() + (c + i) * kPixels + v * kLanes, square[i]);
            }
        }
        const float* found = layers.run(front.data(), back.data());
        for (int j = 0; j < 3; ++j) {
            for (int v = 0; v < kVectors; ++v) seen = watch(seen, load(found + j * kPixels + v * kLanes));
            for (int i = 0; i < n; ++i) out[target[i] + static_cast<std::size_t>(j) * columns] = found[j * kPixels + i];
        }
        n = 0;
    };
    for (int y = region.top; y < region.bottom; ++y) {
        const std::size_t at = static_cast<std::size_t>(y - region.top);
        const std::uint8_t* row_classes = classes + at * columns;
        const float* table_row =
            tables.data +
            static_cast<std::size_t>(place.nearest_rows[y] - tables.window.top) * tables.window.columns() * row_ + head.offset;
        for (int x = 0; x < columns; ++x) {
            if (row_classes[x] != wanted) continue;
            const int X = region.left + x;
            table[n] = table_row + static_cast<std::size_t>(place.nearest_columns[X] - tables.window.left) * row_;
            row_term[n] = place.row_terms[number] + static_cast<std::size_t>(y) * padded;
            column_term[n] = place.column_terms[number] + static_cast<std::size_t>(X) * padded;
            target[n] = at * 3 * columns + x;
            if (++n == kPixels) run();
        }
    }
    if (n > 0) run();
    return !any_not_zero(seen);
}

bool Heads::probabilities(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Region& region, float* out) const {
    const Ending ending = parts_[0].head.outputs == 1 ? Ending::sigmoid : Ending::softmax;
    return dense(0, ending, tables, place, region, nullptr, out);
}

bool Heads::residuals(const pcsr::Tables& tables, const pcsr::Place& place, const pcsr::Region& region,
                      const std::uint8_t* classes, float* out) const {
    bool finite = dense(1, Ending::plain, tables, place, region, classes, out);
    for (std::size_t number = 2; number < parts_.size(); ++number) {
        finite &= sparse(number, tables, place, region, classes, out);
    }
    return finite;
}

}  // namespace PCSR_ISA
