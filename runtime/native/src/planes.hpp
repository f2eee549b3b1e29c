// Features of a whole picture between passes, and the picture itself: to and from the rows of strips.
#pragma once

#include <algorithm>
#include <cstddef>

#include "strips.hpp"

namespace PCSR_ISA {

// The rows of each strip lie together, as they are in the strip, so that the processor can fetch ahead; and apart from
// them the columns that its neighbours need.
struct Plane {
    float* data = nullptr;
    const Cut* cut = nullptr;
    int channels = 0;

    static std::size_t floats(const Cut& cut, int channels) {
        return static_cast<std::size_t>(cut.h) * channels * (cut.before.back() + 2 * cut.halo * (cut.before.size() - 1));
    }

    float* row(const Strip& strip, int y) const {
        return data + (cut->before[strip.index] * cut->h + y * strip.channel()) * channels;
    }

    // (channels, halo): the first columns that the strip with this index gives, or the last ones.
    enum Side { kFirst, kLast };
    float* edge(int index, Side side, int y) const {
        const std::size_t rows = static_cast<std::size_t>(cut->h) * cut->before.back();
        const std::size_t before = (static_cast<std::size_t>(index) * 2 + side) * cut->h + y;
        return data + (rows + before * cut->halo) * channels;
    }
};

// Copy columns from x to x_end of a strip's row to what another strip's edge is, or back.
template <bool ToRow, class Edge>
PCSR_INLINE void copy_edge(const Strip& strip, const Plane& plane, int x, int x_end, float* row, Edge* edge) {
    for (int i = 0; x + i < x_end; ++i) {
        float* at = row + column_offset(x + i - strip.first, strip.tiles);
        for (int c = 0; c < plane.channels; ++c) {
            float& in_row = at[c * strip.channel()];
            float& in_edge = edge[static_cast<std::size_t>(c) * plane.cut->halo + i];
            (ToRow ? in_row : in_edge) = ToRow ? in_edge : in_row;
        }
    }
}

// What a strip gives has been written to its row of the plane: hand the neighbours their part.
inline void hand_over(const Strip& strip, const Plane& plane, int y) {
    const int halo = plane.cut->halo;
    float* row = plane.row(strip, y);
    if (strip.x0 > 0) {
        copy_edge<false>(strip, plane, strip.x0, std::min(strip.x1, strip.x0 + halo), row,
                         plane.edge(strip.index, Plane::kFirst, y));
    }
    if (strip.x1 < strip.w) {
        copy_edge<false>(strip, plane, strip.x1 - halo, strip.x1, row, plane.edge(strip.index, Plane::kLast, y));
    }
}

// A row with the neighbours' columns, and zeros beside the picture.
inline void load_row(const Strip& strip, const Plane& plane, int y, float* row) {
    const int halo = plane.cut->halo;
    std::memcpy(row, plane.row(strip, y), sizeof(float) * plane.channels * strip.channel());
    if (strip.x0 > 0) {
        copy_edge<true>(strip, plane, strip.x0 - halo, strip.x0, row, plane.edge(strip.index - 1, Plane::kLast, y));
    }
    if (strip.x1 < strip.w) {
        copy_edge<true>(strip, plane, strip.x1, std::min(strip.w, strip.x1 + halo), row,
                        plane.edge(strip.index + 1, Plane::kFirst, y));
    }
    clear_borders(strip, row, plane.channels);
}

// Those of the four rows from y that are in the picture.
inline void load_slab(const Strip& strip, const Plane& plane, int y, float* const (&rows)[kSlab]) {
    for (int i = 0; i < kSlab; ++i) {
        if (strip.has_row(y + i)) load_row(strip, plane, y + i, rows[i]);
    }
}

// Planar, (3, h, w); the normalisation comes before the padding with zeros, as in the graph.
struct Picture {
    const float* data;
    float mean[3], deviation[3];
};

// A row of so many tiles, from a column of the picture on.
inline void load_row(const Strip& strip, const Picture& picture, int first, int tiles, int y, float* row) {
    for (int c = 0; c < 3; ++c) {
        const float* from = picture.data + (static_cast<std::size_t>(c) * strip.h + y) * strip.w;
        float* to = row + c * channel_floats(tiles);
        for (int column = 0; column < kPhases * tiles; ++column) {
            const int x = first + column;
            const bool inside = x >= 0 && x < strip.w;
            to[column_offset(column, tiles)] = inside ? (from[x] - picture.mean[c]) / picture.deviation[c] : 0.0f;
        }
    }
}

}  // namespace PCSR_ISA
