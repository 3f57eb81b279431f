#pragma once
#include "reduce.h"

namespace nvgpu {

// Layer or RMS norm of contiguous rows. What is null is left out.
//   z = x + bias[column] + alpha * residual     (stored to residual_out)
//   layer: out = (z - mean) * rsqrt(variance + epsilon) * scale[column] + shift[column]
//   rms:   out = z * rsqrt(mean(z^2) + epsilon) * scale[column] + shift[column]
struct RowNorm {
  bool centred = true;  // layer norm
  Dtype dtype = Dtype::kFloat32;
  Dtype affine = Dtype::kFloat32;  // of scale and shift: dtype, or fp32
  int64_t rows = 0;
  int64_t columns = 0;
  double epsilon = 0;
  const void* x = nullptr;
  const void* bias = nullptr;
  const void* residual = nullptr;
  float alpha = 1;
  const void* scale = nullptr;
  const void* shift = nullptr;
  void* out = nullptr;
  void* residual_out = nullptr;
  void* mean = nullptr;    // [rows], fp32 (fp64 for fp64), as is the next
  void* spread = nullptr;  // layer: the variance; rms: 1 / root mean square
};
void RunRowNorm(const RowNorm& norm, cudaStream_t stream);

// x is contiguous [batch, channels, area]; mean and variance are [batch, groups] in fp32 (fp64 for fp64).
struct GroupNorm {
  Dtype dtype = Dtype::kFloat32;
  Dtype affine = Dtype::kFloat32;
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t area = 0;
  int64_t groups = 0;
  double epsilon = 0;
  const void* x = nullptr;
  const void* scale = nullptr;  // [channels], or null
  const void* shift = nullptr;
  void* out = nullptr;
  void* mean = nullptr;
  void* variance = nullptr;
};
void RunGroupNorm(const GroupNorm& norm, const Scratch& scratch, cudaStream_t stream);

}  // namespace nvgpu
