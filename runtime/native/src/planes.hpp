// Features of a whole picture between passes, and the picture itself: to and from the rows of strips.
#pragma once

#include <algorithm>
#include <cstddef>

#include "strips.hpp"

namespace PCSR_ISA {

// (h, channels, 4 phases, tiles), as a strip that is as wide as the picture.
struct Plane {
    float* data;
    int channels, tiles;

    static int tiles_of(int w) { return (w + kPhases - 1) / kPhases; }
    static std::size_t floats(int channels, int h, int w) {
        return static_cast<std::size_t>(h) * channels * kPhases * tiles_of(w);
    }
    float* row(int y) const { return data + static_cast<std::size_t>(y) * channels * kPhases * tiles; }
};

// Runs are short, and the calls of memcpy would take longer than they.
PCSR_INLINE void copy_run(float* to, const float* from, int n) {
    if (n < kLanes) {
        for (int i = 0; i < n; ++i) to[i] = from[i];
        return;
    }
    for (int i = 0; i + kLanes < n; i += kLanes) store(to + i, load(from + i));
    store(to + n - kLanes, load(from + n - kLanes));
}

// Of one phase of a strip: where its columns from x_begin to x_end lie in the strip and in a plane.
struct PhaseRun {
    int tile, count;    // in the strip
    int plane_offset;   // of the first one, within a channel

    PhaseRun(const Strip& strip, const Plane& plane, int phase, int x_begin, int x_end) {
        const int origin = strip.first + phase;  // the picture's column of tile 0
        const int before = std::max(0, x_begin - origin);
        tile = (before + kPhases - 1) / kPhases;
        const int end = std::min(strip.tiles, (x_end - origin + kPhases - 1) / kPhases);
        count = x_end <= origin ? 0 : std::max(0, end - tile);
        plane_offset = column_offset(origin + kPhases * tile, plane.tiles);
    }
};

// A row with all columns of the strip, zero outside of the picture.
inline void load_row(const Strip& strip, const Plane& plane, int y, float* row) {
    const int end = std::min(strip.w, strip.first + strip.columns());
    for (int phase = 0; phase < kPhases; ++phase) {
        const PhaseRun run(strip, plane, phase, std::max(0, strip.first), end);
        const float* from = plane.row(y) + run.plane_offset;
        float* to = row + phase * strip.tiles;
        for (int c = 0; c < plane.channels; ++c) {
            std::fill_n(to, run.tile, 0.0f);
            copy_run(to + run.tile, from, run.count);
            std::fill(to + run.tile + run.count, to + strip.tiles, 0.0f);
            from += kPhases * plane.tiles;
            to += strip.columns();
        }
    }
}

// The columns that the strip gives.
inline void store_row(const Strip& strip, const float* row, const Plane& plane, int y) {
    for (int phase = 0; phase < kPhases; ++phase) {
        const PhaseRun run(strip, plane, phase, strip.x0, strip.x1);
        const float* from = row + phase * strip.tiles + run.tile;
        float* to = plane.row(y) + run.plane_offset;
        for (int c = 0; c < plane.channels; ++c) {
            copy_run(to, from, run.count);
            from += strip.columns();
            to += kPhases * plane.tiles;
        }
    }
}

// Planar, (3, h, w); the normalisation comes before the padding with zeros, as in the graph.
struct Picture {
    const float* data;
    float mean[3], deviation[3];
};

inline void load_row(const Strip& strip, const Picture& picture, int y, float* row) {
    for (int c = 0; c < 3; ++c) {
        const float* from = picture.data + (static_cast<std::size_t>(c) * strip.h + y) * strip.w;
        float* to = row + c * strip.columns();
        for (int column = 0; column < strip.columns(); ++column) {
            const int x = strip.first + column;
            const bool inside = x >= 0 && x < strip.w;
            to[column_offset(column, strip.tiles)] = inside ? (from[x] - picture.mean[c]) / picture.deviation[c] : 0.0f;
        }
    }
}

}  // namespace PCSR_ISA
