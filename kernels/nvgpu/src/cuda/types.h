// What the kernels (.cu, no Paddle headers) and their registrations (.cc, no device code) say to each other.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace nvgpu {

constexpr int kMaxRank = 9;  // Paddle's own limit

enum class Dtype : int { kBool, kUInt8, kInt8, kInt16, kInt32, kInt64, kFloat16, kBFloat16, kFloat32, kFloat64 };

// Axes of a tensor, outermost first; strides in elements, 0 where an axis is broadcast.
struct Strided {
  int rank = 0;
  int64_t dims[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
};

}  // namespace nvgpu
