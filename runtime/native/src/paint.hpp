// All that is done to a block, so that its values stay in the cache, and that for many blocks in one call, on threads of its
// own, so that Python is entered once and has no part in what thread does what. What each returns: see engine.hpp.
#pragma once

#include <cstdint>

#include "engine.hpp"
#include "heads.hpp"
#include "workspace.hpp"

namespace PCSR_ISA {

int survey(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
           const pcsr::Spread& spread, float* out, std::int64_t stride, double* seconds);
int paint(const Heads& heads, Workspaces& workspaces, const pcsr::Tables& tables, const pcsr::Place& place,
          const pcsr::Patch& patch, const pcsr::Spread& spread, const pcsr::Painting& painting);

}  // namespace PCSR_ISA
