// One time over the picture, through some layers: unit by unit, on all threads.
//
// Within a unit a slab of four rows at a time goes through all layers. A layer that is followed by 3x3 convolutions, n of
// them, is n rows ahead of the last one: of what comes before, a slab then needs the newest slab and two rows above.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "parallel.hpp"
#include "rings.hpp"
#include "slab_convolution.hpp"
#include "strips.hpp"
#include "workspace.hpp"

namespace PCSR_ISA {

// Rows of the picture that a pass begins above its first ones, whose layers see `reach` rows to each side.
constexpr int lead(int reach) { return (2 * reach + kSlab - 1) / kSlab * kSlab; }

// Whether a layer that is `ahead` rows ahead has to compute the slab from y of a unit.
inline bool needed(const Strip& strip, int y, int ahead) {
    return y + kSlab > strip.y0 - ahead && y + kSlab > 0 && y < strip.h;
}

// The slab from y of a 3x3 convolution that is `ahead` rows ahead, where anything needs it.
inline void convolve(const Strip& strip, const SlabConvolution& convolution, const Ring& in, const float* zeros, int y,
                     int ahead, Activation activation, Ring& out, float* scratch) {
    if (!needed(strip, y, ahead)) return;
    const float* from[kSlab + 2];
    float* to[kSlab];
    in.around(strip, zeros, y, 1, from);
    out.slab(y, to);
    convolution.slab(strip, from, activation, to, scratch);
}

// Pass has Rows(Arena&, const Pass&, tiles), and unit(strip, rows). Where the workspace's memory is only counted
// nothing is computed.
template <class Pass>
void run_pass(const Pass& pass, const Cut& cut, Workspace& workspace, int threads) {
    Arena counting(nullptr);
    typename Pass::Rows(counting, pass, cut.most_tiles);
    const int units = static_cast<int>(cut.units.size());
    std::vector<float*> memory;
    for (int i = 0; i < std::min(threads, units); ++i) memory.push_back(workspace.threads.get(i, counting.used()));
    if (workspace.memory == Memory::kCounted) return;
    for_each_unit(threads, units, [&](int worker, int unit) {
        Arena arena(memory[worker]);
        typename Pass::Rows rows(arena, pass, cut.units[unit].tiles);
        pass.unit(cut.units[unit], rows);
    });
}

}  // namespace PCSR_ISA
