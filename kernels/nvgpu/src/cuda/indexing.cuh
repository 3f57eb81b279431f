// For the .cu files that move elements: index arithmetic as narrow, and elements as wide, as the tensors allow.
#pragma once
#include "device.cuh"

// Runs the statement with Index = int32_t where n elements (and the step past the last) allow it: divisions are slow.
#define NVGPU_INDEX(n, ...)             \
  if ((n) < (int64_t{1} << 30)) {       \
    using Index = int32_t;              \
    __VA_ARGS__;                        \
  } else {                              \
    using Index = int64_t;              \
    __VA_ARGS__;                        \
  }

// The body runs for every i in [0, n), over all threads of the grid.
#define NVGPU_EACH(Index, i, n)                                                     \
  for (Index i = Index(blockIdx.x) * Index(blockDim.x) + Index(threadIdx.x); i < n; \
       i += Index(gridDim.x) * Index(blockDim.x))

namespace nvgpu {

// Bytes of the widest element, at most 16, that fits: `bits` is the OR of all addresses and byte counts concerned.
inline int64_t Widest(uint64_t bits) {
  bits |= 16;
  return static_cast<int64_t>(bits & (~bits + 1));
}

inline uint64_t Bits(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
inline uint64_t Bits(int64_t count) { return static_cast<uint64_t>(count); }

}  // namespace nvgpu
