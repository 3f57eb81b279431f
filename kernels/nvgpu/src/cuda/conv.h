// What convolutions need besides cuDNN.
#pragma once
#include "types.h"

namespace nvgpu {

// Contiguous [outer, height, width, inner] into the middle of zeros [outer, top + height + bottom, ..., inner].
// NCHW has N * C as outer and 1 as inner, NHWC has N and C.
struct PadShape {
  int64_t outer, height, width, inner;
  int64_t top, bottom, left, right;
};
void PadImage(size_t element_size, const PadShape& shape, const void* x, void* out, cudaStream_t stream);

// x: contiguous [outer, rows, columns] -> out: contiguous [outer, columns, rows].
void SwapLastAxes(size_t element_size, int64_t outer, int64_t rows, int64_t columns, const void* x, void* out,
                  cudaStream_t stream);

}  // namespace nvgpu
