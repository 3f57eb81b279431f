#pragma once
#include "types.h"

namespace nvgpu {

// Running sums of contiguous x [outer, length, inner] along `length`. exclusive: without the element itself;
// reverse: from the end.
struct Scan {
  int64_t outer = 1;
  int64_t length = 1;
  int64_t inner = 1;
  bool exclusive = false;
  bool reverse = false;
};
void CumSum(Dtype dtype, const Scan& scan, const void* x, void* out, cudaStream_t stream);

// The first k elements of x [outer, length, inner] along `length` in order, and where they were: [outer, k, inner].
// Equal ones keep their order; NaN is larger than any number. k = length sorts.
struct Order {
  int64_t outer = 1;
  int64_t length = 1;
  int64_t inner = 1;
  int64_t k = 1;
  bool descending = false;
};
void Sorted(Dtype dtype, const Order& order, const void* x, void* out, int64_t* indices, cudaStream_t stream);

}  // namespace nvgpu
