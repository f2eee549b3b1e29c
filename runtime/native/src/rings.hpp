// Rows between the layers of a pass: as many of each as are still needed, the newest over the oldest.
#pragma once

#include <climits>
#include <cstddef>

#include "strips.hpp"

namespace PCSR_ISA {

// Hands out parts of one piece of memory. Without memory it only counts.
class Arena {
   public:
    explicit Arena(float* memory) : memory_(memory) {}

    float* take(std::size_t floats) {
        float* part = memory_ ? memory_ + used_ : nullptr;
        used_ += (floats + kUnit - 1) / kUnit * kUnit;
        return part;
    }

    std::size_t used() const { return used_; }

   private:
    static constexpr std::size_t kUnit = 16;  // a cache line
    float* memory_;
    std::size_t used_ = 0;
};

class Ring {
   public:
    Ring(Arena& arena, int rows, int channels, int tiles)
        : rows_(rows),
          row_floats_(channels * channel_floats(tiles) + kStagger),
          memory_(arena.take(rows * row_floats_)) {}

    // The first row that there will be. Where nobody says so it is that of the first slab.
    void begin(int y) { begin_ = y; }

    float* row(int y) const {
        const int slot = y % rows_;
        return memory_ + static_cast<std::size_t>(slot < 0 ? slot + rows_ : slot) * row_floats_;
    }

    // For writing: the rows of a slab that begins at y.
    void slab(int y, float* (&rows)[kSlab]) {
        if (begin_ == INT_MAX) begin_ = y;
        for (int i = 0; i < kSlab; ++i) rows[i] = row(y + i);
    }

    // For a convolution of the slab that begins at y: its rows and `reach` more to both sides. Rows outside of the picture
    // are zero; so are those that were never made, on which only pixels depend that nobody needs: left-overs instead
    // would change the last bits of their neighbours.
    void around(const Strip& strip, const float* zeros, int y, int reach, const float** rows) const {
        for (int i = 0; i < kSlab + 2 * reach; ++i) {
            const int at = y - reach + i;
            rows[i] = at < begin_ || !strip.has_row(at) ? zeros : row(at);
        }
    }

   private:
    // Rows begin in different sets of the first-level cache: several are read together.
    static constexpr std::size_t kStagger = 48;
    int rows_;
    std::size_t row_floats_;
    float* memory_;
    int begin_ = INT_MAX;
};

}  // namespace PCSR_ISA
