// Reductions among the threads of a block, in a fixed order, so that results repeat.
#pragma once
#include "device.cuh"

namespace nvgpu {

// The value of the lane `distance` after this one; any trivially copyable type.
template <typename A> __device__ __forceinline__ A ShuffleDown(const A& value, int distance, int width) {
  static_assert(sizeof(A) % 4 == 0, "whole words");
  union Words {
    A value;
    uint32_t word[sizeof(A) / 4];
    __device__ Words() {}
  } words;
  words.value = value;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(A) / 4); ++i)
    words.word[i] = __shfl_down_sync(0xffffffffu, words.word[i], distance, width);
  return words.value;
}

// Over each `width` (a power of two up to 32) neighbouring lanes; the first of them gets the result.
template <typename A, typename Combine> __device__ __forceinline__ A WarpReduce(A value, int width, Combine combine) {
  for (int distance = width / 2; distance > 0; distance /= 2)
    value = combine(value, ShuffleDown(value, distance, width));
  return value;
}

// Over a block of whole warps along x; thread 0 gets the result. `init` is neutral. Every thread must call.
template <typename A, typename Combine> __device__ A BlockReduce(A value, A init, Combine combine) {
  __shared__ alignas(16) unsigned char storage[32 * sizeof(A)];
  A* shared = reinterpret_cast<A*>(storage);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = WarpReduce(value, 32, combine);
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  if (warp == 0) value = WarpReduce(lane < warps ? shared[lane] : init, 32, combine);
  __syncthreads();  // before the next call writes
  return value;
}

}  // namespace nvgpu
