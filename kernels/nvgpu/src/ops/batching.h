// Which strided products a matmul of any ranks and batch dims is made of. Plain C++: tested without a GPU.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "blas.h"

namespace nvgpu {

using Dims = std::vector<int64_t>;

// One axis of the batch: its size, and how far x, y and out move along it (0 where broadcast).
struct BatchAxis {
  int64_t size, x, y, out;
};

struct MatmulPlan {
  GemmShape shape;               // of every product
  std::vector<BatchAxis> loops;  // one product for each of their positions; nearly always none
};

// Row-major strides times `matrix`, aligned with `rank` axes from the last; 0 where `dims` has 1 or no axis.
inline Dims BatchStrides(const Dims& dims, int rank, int64_t matrix) {
  Dims strides(rank, 0);
  int missing = rank - static_cast<int>(dims.size());
  for (int i = rank - 1; i >= missing; --i) {
    strides[i] = dims[i - missing] == 1 ? 0 : matrix;
    matrix *= dims[i - missing];
  }
  return strides;
}

// The batch axes with neighbours joined where x, y and out all run through both as through one.
inline std::vector<BatchAxis> BatchAxes(const Dims& x, const Dims& y, const GemmShape& s) {
  int rank = static_cast<int>(std::max(x.size(), y.size()));
  Dims sizes(rank, 1);
  for (int i = 0; i < rank; ++i) {
    int in_x = i - rank + static_cast<int>(x.size()), in_y = i - rank + static_cast<int>(y.size());
    sizes[i] = in_x < 0 ? y[in_y] : in_y < 0 ? x[in_x] : std::max(x[in_x], y[in_y]);
  }
  Dims along_x = BatchStrides(x, rank, s.m * s.k), along_y = BatchStrides(y, rank, s.k * s.n);
  Dims along_out = BatchStrides(sizes, rank, s.m * s.n);
  std::vector<BatchAxis> axes;
  for (int i = 0; i < rank; ++i) {
    if (sizes[i] == 1) continue;
    BatchAxis next{sizes[i], along_x[i], along_y[i], along_out[i]};
    BatchAxis* last = axes.empty() ? nullptr : &axes.back();
    if (last && last->x == next.x * next.size && last->y == next.y * next.size) {
      next.size *= last->size;  // out is contiguous: it always runs on
      axes.pop_back();
    }
    axes.push_back(next);
  }
  return axes;
}

// x and y are the dims of both operands with rank >= 2, nothing empty.
inline MatmulPlan PlanMatmul(const Dims& x, const Dims& y, bool transpose_x, bool transpose_y) {
  MatmulPlan plan;
  GemmShape& s = plan.shape;
  s.transpose_x = transpose_x, s.transpose_y = transpose_y;
  s.m = x[x.size() - (transpose_x ? 1 : 2)], s.k = x[x.size() - (transpose_x ? 2 : 1)];
  s.n = y[y.size() - (transpose_y ? 2 : 1)];
  auto axes = BatchAxes({x.begin(), x.end() - 2}, {y.begin(), y.end() - 2}, s);
  // Rows of all of x's matrices meet the same y: one taller product.
  if (!axes.empty() && axes.back().y == 0 && axes.back().x != 0 && !transpose_x) {
    s.m *= axes.back().size;
    axes.pop_back();
  }
  if (axes.empty()) return plan;
  auto largest = std::max_element(axes.begin(), axes.end(), [](auto& a, auto& b) { return a.size < b.size; });
  s.batch = largest->size, s.stride_x = largest->x, s.stride_y = largest->y, s.stride_out = largest->out;
  axes.erase(largest);
  plan.loops = axes;
  return plan;
}

}  // namespace nvgpu
