// How a picture is cut for the backbone, and how its rows lie in memory.
//
// Units of work are strips of columns times bands of rows, so narrow that all rows between the layers of a pass stay in
// the second-level cache. Neighbours overlap by the pass's halo, which each computes for itself.
//
// A row of a strip is (channels, 4 phases, tiles): column c lies at phase c mod 4, tile c / 4. So a vector holds the same
// column of as many neighbouring tiles of Winograd's F(4x4), a shift by a column is a load at another address, and
// neither channels nor groups are ever padded. The 1x1 convolutions do not care for the order of columns.
#pragma once

#include <algorithm>
#include <climits>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "simd.hpp"

namespace PCSR_ISA {

// Outputs of a Winograd tile in each direction, and so: phases of columns, rows of a slab.
constexpr int kPhases = 4;
constexpr int kSlab = 4;

// Floats from the start of a channel to a column, which may lie before the first or after the last one by less than a
// tile: what is there then is another phase's, in bounds and of no use.
constexpr int column_offset(int column, int tiles) { return (column & (kPhases - 1)) * tiles + (column >> 2); }

// Floats of a channel. Some more than there are columns: channels that lay a power of two apart would share few sets of the
// first-level cache.
constexpr std::size_t channel_floats(int tiles) { return static_cast<std::size_t>(kPhases) * tiles + 16; }

struct Strip {
    int h, w;            // of the picture
    int y0, y1, x0, x1;  // the pixels that it gives
    int first;           // picture's column of the strip's column 0; -1 at the left border
    int tiles;           // a multiple of the lanes
    int index;           // among the strips from the left

    int columns() const { return kPhases * tiles; }
    std::size_t channel() const { return channel_floats(tiles); }
    bool has_row(int y) const { return y >= 0 && y < h; }
};

// Columns of a strip at most: three AVX-512 vectors of tiles. Wider strips overlap less, and outgrow the cache.
constexpr int kWidestStrip = 192;
// Work is cut into about this many units, for many threads; bands stay this high, as they overlap too. It depends on
// nothing but the picture: where tiles begin changes the last bits, and the number of threads must not.
constexpr int kUnits = 32;
constexpr int kLeastBand = 64;

// Cut the width into strips of at most so many columns, each of which sees `halo` columns more to both sides than it gives;
// none if that leaves no room.
inline std::vector<Strip> cut_columns(int w, int halo, int widest) {
    constexpr int unit = kPhases * kLanes;
    std::vector<Strip> strips;
    for (int x = 0; x < w;) {
        // One column of zeros suffices beside the picture.
        const int left = x == 0 ? 1 : halo;
        const int rest = left + (w - x) + 1;
        const bool last = rest <= widest;
        const int columns = last ? (rest + unit - 1) / unit * unit : widest;
        const int end = last ? w : x - left + columns - halo;
        // Neighbours' halos end within a strip: what they need they find there.
        if (!last && end - x < std::max(1, halo)) return {};
        strips.push_back(Strip{0, w, 0, 0, x, end, x - left, columns / kPhases, static_cast<int>(strips.size())});
        x = end;
    }
    return strips;
}

// The units of all passes over a picture.
struct Cut {
    int h, halo;
    std::vector<Strip> units;
    std::vector<std::size_t> before;  // floats of a channel of all strips to the left of each; at last, of all
    int most_tiles;                   // of a strip

    // Of strips as wide as waste the fewest columns.
    Cut(int h, int w, int halo) : h(h), halo(halo), before{0}, most_tiles(0) {
        constexpr int unit = kPhases * kLanes;
        std::vector<Strip> row;
        int fewest = INT_MAX;
        for (int most = unit; most <= kWidestStrip; most += unit) {
            std::vector<Strip> candidate = cut_columns(w, halo, most);
            if (candidate.empty()) continue;
            int columns = 0;
            for (const Strip& strip : candidate) columns += strip.columns();
            if (columns < fewest) {
                fewest = columns;
                row = std::move(candidate);
            }
        }
        if (row.empty()) throw std::logic_error("a pass has too large a halo for its strips");
        for (const Strip& strip : row) {
            before.push_back(before.back() + strip.channel());
            most_tiles = std::max(most_tiles, strip.tiles);
        }
        const int strips = static_cast<int>(row.size());
        const int bands = std::min(std::max(1, kUnits / strips), std::max(1, h / kLeastBand));
        const int rows = ((h + bands - 1) / bands + kSlab - 1) / kSlab * kSlab;
        for (int y = 0; y < h; y += rows) {
            for (Strip strip : row) {
                strip.h = h;
                strip.y0 = y;
                strip.y1 = std::min(h, y + rows);
                units.push_back(strip);
            }
        }
    }
};

// Layers pad with zeros: after each one the column on either side of the picture is zero again. The columns beyond hold
// numbers that nobody uses.
inline void clear_borders(const Strip& strip, float* row, int channels) {
    const int tiles = strip.tiles;
    for (const int x : {-1, strip.w}) {
        const int column = x - strip.first;
        if (column < 0 || column >= strip.columns()) continue;
        float* at = row + column_offset(column, tiles);
        for (int c = 0; c < channels; ++c) at[c * strip.channel()] = 0.0f;
    }
}

}  // namespace PCSR_ISA
