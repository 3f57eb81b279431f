// A tensor and its parts along an axis, side by side: concat, split and their kind.
#pragma once
#include <vector>

#include "types.h"

namespace nvgpu {

// Some columns of a tensor of rows: `width` elements from `offset` on, kept in a dense tensor [rows, width].
struct Columns {
  void* data;
  int64_t width;
  int64_t offset;
};

// whole[rows, row_width] = its columns, and the other way round; `size` is the bytes of an element.
void JoinColumns(int64_t size, int64_t rows, int64_t row_width, const std::vector<Columns>& parts, void* whole,
                 cudaStream_t stream);
void SplitColumns(int64_t size, int64_t rows, int64_t row_width, const std::vector<Columns>& parts, const void* whole,
                  cudaStream_t stream);

}  // namespace nvgpu
