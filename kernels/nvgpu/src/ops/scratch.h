// Temporaries of an op, and its axes.
#pragma once
#include <memory>

#include "../cuda/reduce.h"
#include "glue.h"

namespace nvgpu {

// The memory is given back when the last copy of the function goes; the allocator reuses it in the stream's order.
inline Scratch ScratchOf(const CustomContext& ctx) {
  auto held = std::make_shared<std::vector<DenseTensor>>();
  return [&ctx, held](int64_t bytes) -> void* {
    held->emplace_back();
    held->back().Resize(phi::make_ddim({bytes}));
    return ctx.template Alloc<uint8_t>(&held->back());
  };
}

// x as [outer, length, inner] about an axis (negative ones count from the last). A 0-d tensor has one element.
struct About {
  int64_t outer = 1;
  int64_t length = 1;
  int64_t inner = 1;

  About(const phi::DDim& dims, int axis) {
    const int rank = dims.size(), at = axis < 0 ? axis + rank : axis;
    for (int i = 0; i < rank; ++i) (i < at ? outer : i == at ? length : inner) *= dims[i];
  }
};

}  // namespace nvgpu
