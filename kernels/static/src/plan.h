// How attention's tiles are dealt out: kernels/attention_hopper_split.py, number by number.
#pragma once

#include <cstdint>

namespace sd3par {

// whole: tiles that are done whole; share: blocks of keys that a program does of all others; span: from tile to tile.
struct Plan {
  std::int64_t whole, share, span;
};

// The way that should take the least time for `tiles` of `blocks` blocks of keys each.
Plan Planned(std::int64_t tiles, std::int64_t blocks, std::int64_t programs);

// How many of `programs` have something to do.
std::int64_t ProgramsOf(const Plan& plan, std::int64_t tiles, std::int64_t programs);

}  // namespace sd3par
