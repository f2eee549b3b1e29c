// All that is done to a block, in one call: so its values stay in the cache, and Python has its lock once.
#pragma once

#include <cstdint>

#include "engine.hpp"
#include "heads.hpp"
#include "workspace.hpp"

namespace PCSR_ISA {

bool survey(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
            const pcsr::Region& region, float* out, std::int64_t stride);
bool paint(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
           const pcsr::Patch& patch, const pcsr::Painting& painting);

}  // namespace PCSR_ISA
