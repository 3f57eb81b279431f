// Joint attention whose results go to tensors, or to other GPUs' memory.
#pragma once

#include <cstdint>
#include <vector>

#include "launch.h"

namespace sd3par {

// Where a segment's results go: a tensor, or addresses of shards; tokens of a shard, from row to row and from token to
// token there, in numbers.
struct Target {
  Argument base;
  std::int64_t size, row, token;
};

// Attention of one or two segments, [R, T, 3 * heads * dim] or [R, T, 3, heads, dim] each, in one run.
void AttendTo(const Gpu& gpu, const std::vector<Tensor>& segments, std::int64_t heads, std::int64_t dim,
              const std::vector<Target>& targets);

}  // namespace sd3par
