// Rows held in registers: kPacks packs of V elements a thread, `width` threads a row. For softmax and the norms.
//
// blockDim is (width, rows of a block). A width up to 32 is a power of two, and a block has several rows; a greater one
// is a multiple of 32, and a block has one row.
#pragma once
#include "pack.cuh"

namespace nvgpu {

// With kRowThreads bounded, the compiler keeps to 128 registers a thread, which hold the longest rows.
constexpr int kRowThreads = 512;

struct RowLayout {
  int width;  // 0: the row does not fit
  int packs;  // 1, 2, 4 or 8 a thread

  dim3 threads() const { return dim3(width, width >= 32 ? (width == 32 ? 4 : 1) : 128 / width); }
  int grid(int64_t rows) const {
    return static_cast<int>(std::min<int64_t>((rows + threads().y - 1) / threads().y, 1 << 30));
  }
};

// For rows of so many packs. One warp a row up to `warp_packs` (4 or 8) a thread: it needs no barrier.
inline RowLayout RowLayoutOf(int64_t packs, int warp_packs) {
  int width = 1;
  while (width < 32 && width < packs) width *= 2;
  for (int each = 1; each <= warp_packs; each *= 2)
    if (packs <= int64_t(width) * each) return {width, each};
  for (int each = 4; each <= 8; each *= 2) {
    const int64_t threads = (packs + each - 1) / each;
    if (threads <= kRowThreads) return {static_cast<int>((threads + 31) / 32 * 32), each};
  }
  return {0, 0};
}

#define NVGPU_ROW_PACKS(packs, ...) \
  switch (packs) {                  \
    case 1: {                       \
      constexpr int kPacks = 1;     \
      __VA_ARGS__;                  \
      break;                        \
    }                               \
    case 2: {                       \
      constexpr int kPacks = 2;     \
      __VA_ARGS__;                  \
      break;                        \
    }                               \
    case 4: {                       \
      constexpr int kPacks = 4;     \
      __VA_ARGS__;                  \
      break;                        \
    }                               \
    default: {                      \
      constexpr int kPacks = 8;     \
      __VA_ARGS__;                  \
      break;                        \
    }                               \
  }

// Over the threads of a row; each of them gets the result. All threads of the block must call. `shared` holds a value
// of each warp; a block that reduces several times takes turns between two arrays at least, so that one barrier is
// enough.
template <typename A, typename Combine> __device__ __forceinline__ A RowReduce(A value, A* shared, Combine combine) {
  const int width = blockDim.x;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    if (distance < width) value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  if (width <= 32) return value;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (int warp = 1; warp < width / 32; ++warp) value = combine(value, shared[warp]);
  return value;
}

struct Plus {
  template <typename A> __device__ A operator()(A a, A b) const { return a + b; }
};
// A NaN wins.
struct Larger {
  template <typename A> __device__ A operator()(A a, A b) const { return a > b || a != a ? a : b; }
};

}  // namespace nvgpu
