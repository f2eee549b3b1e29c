// What a network does once it is opened, whichever instruction set computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "network.hpp"

namespace pcsr {

struct Region {
    std::int32_t top, bottom, left, right;

    int rows() const { return bottom - top; }
    int columns() const { return right - left; }
};

// First-layer sums of all heads, (rows, columns, row) of NetworkDescription, of a window of the input.
struct Tables {
    const float* data;
    Region window;
};

// What depends on the geometry of a picture alone: of each output row and column the nearest input pixel, and every
// head's terms, in the order of the heads.
struct Place {
    const std::int32_t* nearest_rows;
    const std::int32_t* nearest_columns;
    // Each (H, padded channels).
    const float* const* row_terms;
    // Of the classifier and class 0 (channels, column_stride), of the others (W, padded channels).
    const float* const* column_terms;
    // At least W and a group of pixels: what follows the terms is read, and not used.
    std::int64_t column_stride;
};

// Type of a picture's samples: uint8, uint16, float32.
enum class Sample : std::int32_t { byte = 0, word = 1, real = 2 };

// Blocks of an output region, in reading order, and how many threads take them one after another.
struct Spread {
    const Region* blocks;
    std::int32_t count, threads;
};

// A part of the output and what its pixels are made of; see Patch in compose.py.
struct Patch {
    // Of the input, from row lr_top and column lr_left on, lr_columns: all that the base reads. Bytes from row to row, from
    // pixel to pixel and from channel to channel: it is where and how it is.
    const void* lr;
    std::int64_t lr_row, lr_pixel, lr_channel;
    std::int32_t lr_top, lr_left, lr_columns;
    std::int32_t channels;
    Sample sample;
    std::int32_t refined;
    // Of every output row and column the input pixels it lies between, and the weight of the second.
    const std::int32_t *low_rows, *high_rows;
    const float* row_weights;
    const std::int32_t *low_columns, *high_columns;
    const float* column_weights;
    // What the residual is of, and what of it is wanted.
    Region region, inner;
    // Of `inner`; bytes from row to row.
    void* out;
    std::int64_t out_stride;
};

// Equal parts of a range; see Bins in distribution.py. No value is below the range.
struct Bins {
    double low, factor;
    std::int32_t count;
};

// By which pixels are classed; see Rule in decision.py. One of the two is null.
struct Rule {
    const float* thresholds;  // M - 1, ascending
    const float* weights;     // M
};

// What else painting the blocks of a patch is given and gives.
struct Painting {
    Rule rule;
    // Difficulties of the whole output, floats from row to row; null: the classifier is run.
    const float* difficulties;
    std::int64_t difficulty_stride;
    // Of the patch's inner region, bytes from row to row.
    std::uint8_t* class_map;
    std::int64_t class_stride;
    // Of each class the pixels of all blocks.
    std::int64_t* counts;
    // Of classifier, upsamplers, compose: all threads' together.
    double* seconds;
};

class Engine {
   public:
    virtual ~Engine() = default;

    // Why it cannot compute tables; empty if it can. Heads work on tables of any origin.
    virtual const char* no_backbone() const = 0;

    // lr: (3, h, w); tables: (h, w, row), the padding too; as many threads are started for the call.
    virtual void tables(const float* lr, int h, int w, float* tables, int threads) const = 0;

    // Bytes that such a call takes, and that stay for the next; the tables are not among them.
    virtual std::size_t working_bytes(int h, int w, int threads) const = 0;

    // out: (rows, outputs, columns). Both say whether everything was finite.
    virtual bool probabilities(const Tables&, const Place&, const Region&, float* out) const = 0;

    // classes: (rows, columns); out: (rows, 3, columns).
    virtual bool residuals(const Tables&, const Place&, const Region&, const std::uint8_t* classes, float* out) const = 0;

    // residual: (rows, 3, columns) of the patch's region, overwritten; classes: (rows, columns).
    virtual void finish(const Patch&, float* residual, const std::uint8_t* classes) const = 0;

    // out: difficulties of the whole output, floats from row to row, written where blocks are; seconds: all threads' together.
    // This one and the next return the first block that is not finite, which ends the work, and the count where all are.
    virtual int survey(const Tables&, const Place&, const Spread&, float* out, std::int64_t stride, double* seconds) const = 0;

    // Classes, residuals and finish in one. Blocks lie in the patch's inner region; each is computed with a margin of one
    // pixel, as far as the patch's region goes, where it is refined.
    virtual int paint(const Tables&, const Place&, const Patch&, const Spread&, const Painting&) const = 0;

    // found: the least and the greatest of n values, one or more.
    virtual void extremes(const float* values, std::int64_t n, float* found) const = 0;

    // To counts and sums of the bins, those of n values are added: the same sums for any number of threads.
    virtual void histogram(const float* values, std::int64_t n, const Bins&, int threads, std::int64_t* counts,
                           double* sums) const = 0;

    // found: exact room for those of n values whose bins are wanted, in any order.
    virtual void inside(const float* values, std::int64_t n, const Bins&, int threads, const std::uint8_t* wanted,
                        float* found) const = 0;
};

}  // namespace pcsr

// Each instruction set's; throws std::invalid_argument where the description contradicts itself.
namespace scalar {
std::unique_ptr<pcsr::Engine> open(const pcsr::NetworkDescription&);
}
namespace avx2 {
std::unique_ptr<pcsr::Engine> open(const pcsr::NetworkDescription&);
}
namespace avx512 {
std::unique_ptr<pcsr::Engine> open(const pcsr::NetworkDescription&);
}
