// Parts of tensors as strided axes, and what the ops that only move elements share.
#pragma once
#include <string>
#include <vector>

#include "glue.h"
#include "paddle/phi/common/int_array.h"
#include "paddle/phi/common/scalar.h"

// The dtypes that can be moved.

namespace nvgpu {

using phi::DDim;
using phi::IntArray;
using phi::Scalar;

inline int64_t SizeOf(const DenseTensor& x) { return static_cast<int64_t>(phi::SizeOf(x.dtype())); }

// An axis counted from the end, as one counted from the front.
inline int Axis(int64_t axis, int rank) { return static_cast<int>(axis < 0 ? axis + rank : axis); }

// Elements along axes [begin, end).
inline int64_t Count(const DDim& dims, int begin, int end) {
  int64_t n = 1;
  for (int i = begin; i < end; ++i) n *= dims[i];
  return n;
}

inline void Append(Strided* axes, int64_t dim, int64_t stride) {
  PADDLE_ENFORCE_LT(axes->rank, kMaxRank, common::errors::InvalidArgument("nvgpu: at most %d axes", kMaxRank));
  axes->dims[axes->rank] = dim;
  axes->strides[axes->rank++] = stride;
}

// A regular part of a contiguous tensor: element `offset` on, with the axes given.
struct View {
  int64_t offset = 0;
  Strided axes;
};

// x[start:end:step] along some axes, bounds as Python's: negative ones count from the end, all are clipped.
View SliceOf(const DDim& dims, const std::vector<int64_t>& axes, const std::vector<int64_t>& starts,
             const std::vector<int64_t>& ends, const std::vector<int64_t>& steps);

// The axes without those dropped (an index rather than a slice) and as dims.
Strided Without(const Strided& axes, const std::vector<int64_t>& dropped);
DDim DimsOf(const Strided& axes);

inline void* At(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }
inline const void* At(const void* data, int64_t bytes) { return static_cast<const char*>(data) + bytes; }

// out = x where an op changes a part of x: nothing to do when it works in place.
void CopyWhole(const CustomContext& ctx, const DenseTensor& x, DenseTensor* out);

}  // namespace nvgpu
