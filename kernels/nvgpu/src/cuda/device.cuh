// For .cu files: dtypes as C++ types, fp32 (or fp64) arithmetic for all of them, launch sizes, index arithmetic.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "types.h"

namespace nvgpu {

using half_t = __half;
using bf16_t = __nv_bfloat16;

// The type that T is computed in.
template <typename T> struct Compute { using type = T; };
template <> struct Compute<half_t> { using type = float; };
template <> struct Compute<bf16_t> { using type = float; };
template <typename T> using compute_t = typename Compute<T>::type;

template <typename T> __host__ __device__ __forceinline__ compute_t<T> Load(T x) { return static_cast<compute_t<T>>(x); }
template <typename T> __host__ __device__ __forceinline__ T Store(compute_t<T> x) { return static_cast<T>(x); }

inline void Check(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw std::runtime_error(std::string("nvgpu: ") + what + ": " + cudaGetErrorString(e));
}

// 256 threads a block, and blocks that loop: 16 a multiprocessor are enough on every card.
constexpr int kThreads = 256;
inline int Blocks(int64_t n, int per_thread = 1) {
  int64_t blocks = (n + int64_t(kThreads) * per_thread - 1) / (int64_t(kThreads) * per_thread);
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(blocks, 1), 132 * 16));
}

#define NVGPU_CASE(D, TYPE, ...) \
  case ::nvgpu::Dtype::D: {      \
    using T = TYPE;              \
    __VA_ARGS__;                 \
    break;                       \
  }
#define NVGPU_BAD_DTYPE(what) \
  default: throw std::runtime_error(std::string("nvgpu: ") + what + ": dtype not supported")

// NVGPU_FLOATS(dtype, "softmax", Kernel<T><<<...>>>(...)): runs the statement with T = the C++ type of dtype.
#define NVGPU_FLOATS(dtype, what, ...)              \
  switch (dtype) {                                  \
    NVGPU_CASE(kFloat32, float, __VA_ARGS__)        \
    NVGPU_CASE(kFloat16, half_t, __VA_ARGS__)       \
    NVGPU_CASE(kBFloat16, bf16_t, __VA_ARGS__)      \
    NVGPU_CASE(kFloat64, double, __VA_ARGS__)       \
    NVGPU_BAD_DTYPE(what);                          \
  }
#define NVGPU_NUMBERS(dtype, what, ...)             \
  switch (dtype) {                                  \
    NVGPU_CASE(kFloat32, float, __VA_ARGS__)        \
    NVGPU_CASE(kFloat16, half_t, __VA_ARGS__)       \
    NVGPU_CASE(kBFloat16, bf16_t, __VA_ARGS__)      \
    NVGPU_CASE(kFloat64, double, __VA_ARGS__)       \
    NVGPU_CASE(kInt32, int32_t, __VA_ARGS__)        \
    NVGPU_CASE(kInt64, int64_t, __VA_ARGS__)        \
    NVGPU_BAD_DTYPE(what);                          \
  }
// Every dtype there is.
#define NVGPU_ALL(dtype, what, ...)                 \
  switch (dtype) {                                  \
    NVGPU_CASE(kFloat32, float, __VA_ARGS__)        \
    NVGPU_CASE(kFloat16, half_t, __VA_ARGS__)       \
    NVGPU_CASE(kBFloat16, bf16_t, __VA_ARGS__)      \
    NVGPU_CASE(kFloat64, double, __VA_ARGS__)       \
    NVGPU_CASE(kBool, bool, __VA_ARGS__)            \
    NVGPU_CASE(kUInt8, uint8_t, __VA_ARGS__)        \
    NVGPU_CASE(kInt8, int8_t, __VA_ARGS__)          \
    NVGPU_CASE(kInt16, int16_t, __VA_ARGS__)        \
    NVGPU_CASE(kInt32, int32_t, __VA_ARGS__)        \
    NVGPU_CASE(kInt64, int64_t, __VA_ARGS__)        \
    NVGPU_BAD_DTYPE(what);                          \
  }
// Where only the width of an element matters (copies): T is an unsigned integer of that many bytes.
#define NVGPU_BYTES(size, what, ...)                                              \
  switch (size) {                                                                 \
    case 1: { using T = uint8_t; __VA_ARGS__; break; }                            \
    case 2: { using T = uint16_t; __VA_ARGS__; break; }                           \
    case 4: { using T = uint32_t; __VA_ARGS__; break; }                           \
    case 8: { using T = uint64_t; __VA_ARGS__; break; }                           \
    case 16: { using T = uint4; __VA_ARGS__; break; }                             \
    default: throw std::runtime_error(std::string("nvgpu: ") + what + ": element size not supported"); \
  }

// Where element `index` (row-major over dims) lies.
__device__ __forceinline__ int64_t Offset(const Strided& s, int64_t index) {
  int64_t offset = 0;
#pragma unroll
  for (int axis = kMaxRank - 1; axis >= 0; --axis) {
    if (axis < s.rank) {
      int64_t next = index / s.dims[axis];
      offset += (index - next * s.dims[axis]) * s.strides[axis];
      index = next;
    }
  }
  return offset;
}

}  // namespace nvgpu
