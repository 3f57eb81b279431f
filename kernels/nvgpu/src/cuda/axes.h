// Several tensors of one shape, walked together: which axes are one, in which parts, in how wide steps. Host code.
#pragma once
#include <algorithm>
#include <cstdlib>

#include "types.h"

namespace nvgpu {

template <int K> struct Axes {
  int rank = 0;
  int64_t dims[kMaxRank] = {};
  int64_t strides[K][kMaxRank] = {};

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  int inner() const { return rank - 1; }
};

inline Strided RowMajor(const Strided& shape) {
  Strided s = shape;
  int64_t stride = 1;
  for (int i = s.rank - 1; i >= 0; stride *= s.dims[i--]) s.strides[i] = stride;
  return s;
}

// Axes of size 1 go; neighbours that every tensor steps through as through one axis become one. Rank is at least 1.
template <int K> Axes<K> Merged(const Strided (&tensors)[K]) {
  Axes<K> axes;
  for (int i = 0; i < tensors[0].rank; ++i) {
    int64_t dim = tensors[0].dims[i];
    if (dim == 1) continue;
    bool one = axes.rank > 0;
    for (int k = 0; k < K && one; ++k) one = axes.strides[k][axes.inner()] == tensors[k].strides[i] * dim;
    if (!one) axes.dims[axes.rank++] = 1;
    axes.dims[axes.inner()] *= dim;
    for (int k = 0; k < K; ++k) axes.strides[k][axes.inner()] = tensors[k].strides[i];
  }
  if (axes.rank == 0) {
    axes.dims[axes.rank++] = 1;
    for (int k = 0; k < K; ++k) axes.strides[k][0] = 1;
  }
  return axes;
}

// Calls run(part, offsets in elements) for parts small enough to be indexed by 31 bits. What is cut is the outermost
// axis, so that parts of a contiguous tensor are contiguous.
template <int K, typename Run> void EachPart(const Axes<K>& axes, const Run& run, const int64_t (&offsets)[K] = {}) {
  if (axes.numel() < (int64_t(1) << 31)) return run(axes, offsets);
  int outer = 0;
  while (axes.dims[outer] == 1) ++outer;
  int64_t half = axes.dims[outer] / 2;
  if (half >= 16) half -= half % 16;  // both parts keep the alignment that vectors need
  Axes<K> part = axes;
  int64_t after[K];
  for (int k = 0; k < K; ++k) after[k] = offsets[k] + half * axes.strides[k][outer];
  part.dims[outer] = half;
  EachPart(part, run, offsets);
  part.dims[outer] = axes.dims[outer] - half;
  EachPart(part, run, after);
}

// Whether tensor k can be read and written in vectors of n elements of `size` bytes; one value for all is fine too.
template <int K> bool Steps(const Axes<K>& axes, int k, const void* data, int n, int size) {
  int64_t inner = axes.strides[k][axes.inner()];
  if (inner == 0) return true;
  bool fits = inner == 1 && reinterpret_cast<uintptr_t>(data) % (n * size) == 0;
  for (int i = 0; i < axes.inner(); ++i) fits = fits && axes.strides[k][i] % n == 0;
  return fits;
}

// Division by a number known to the host, for dividends below 2^31: a multiplication and a shift
// (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994).
struct Divider {
  uint32_t divisor = 1, magic = 1, shift = 0;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    while ((uint64_t(1) << shift) < divisor) ++shift;
    magic = static_cast<uint32_t>((((uint64_t(1) << shift) - divisor) << 32) / divisor + 1);
  }
};

// The first K tensors of `Axes` as a kernel sees them: vector i of `vectors`, and `tail` single elements at the end.
template <int K> struct Walk {
  uint32_t vectors = 0, tail = 0;
  int rank = 0;
  bool spread[K] = {};  // one value for the whole vector
  Divider dims[kMaxRank];
  int64_t strides[K][kMaxRank] = {};
};

template <int K, int All> Walk<K> WalkOf(const Axes<All>& axes, int width) {
  Walk<K> walk;
  walk.rank = axes.rank;
  // The first axis takes what is left: nothing is divided by it.
  for (int i = 1; i < axes.rank; ++i) walk.dims[i] = Divider(i == axes.inner() ? axes.dims[i] / width : axes.dims[i]);
  for (int k = 0; k < K; ++k) {
    std::copy_n(axes.strides[k], axes.rank, walk.strides[k]);
    if (axes.rank > 0) walk.strides[k][axes.inner()] *= width;
    walk.spread[k] = axes.rank > 0 && axes.strides[k][axes.inner()] == 0;
  }
  walk.vectors = static_cast<uint32_t>(axes.numel() / width);
  walk.tail = static_cast<uint32_t>(axes.numel() % width);
  return walk;
}

}  // namespace nvgpu
