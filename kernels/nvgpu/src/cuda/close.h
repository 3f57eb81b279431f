#pragma once
#include "types.h"

namespace nvgpu {

// Whether contiguous x and y [n] are equal everywhere; out is one bool.
void EqualAll(Dtype dtype, const void* x, const void* y, bool* out, int64_t n, cudaStream_t stream);

struct Tolerance {
  double relative = 0;
  double absolute = 0;
  bool equal_nan = false;
};
// |x - y| <= absolute + relative * |y|: of each of n elements, or of all of them (out is one bool).
void IsClose(Dtype dtype, const void* x, const void* y, bool* out, int64_t n, const Tolerance& by, cudaStream_t stream);
void AllClose(Dtype dtype, const void* x, const void* y, bool* out, int64_t n, const Tolerance& by,
              cudaStream_t stream);

}  // namespace nvgpu
