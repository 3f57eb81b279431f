#include "order.h"

#include "device.cuh"

namespace nvgpu {
namespace {

// The first element of a line; its neighbours are `inner` apart.
__device__ __forceinline__ int64_t BaseOf(int64_t line, int64_t length, int64_t inner) {
  return line / inner * length * inner + line % inner;
}

// A block a line: each round adds kThreads elements to what came before.
template <typename T> __global__ void LinesKernel(Scan s, const T* x, T* out) {
  using A = compute_t<T>;
  __shared__ A sums[kThreads];
  for (int64_t line = blockIdx.x; line < s.outer * s.inner; line += gridDim.x) {
    const int64_t base = BaseOf(line, s.length, s.inner);
    A before = 0;
    for (int64_t first = 0; first < s.length; first += kThreads) {
      const int64_t i = first + threadIdx.x;
      const int64_t at = base + (s.reverse ? s.length - 1 - i : i) * s.inner;
      const A own = i < s.length ? Load(x[at]) : A(0);
      sums[threadIdx.x] = own;
      for (int distance = 1; distance < kThreads; distance *= 2) {
        __syncthreads();
        const A left = static_cast<int>(threadIdx.x) >= distance ? sums[threadIdx.x - distance] : A(0);
        __syncthreads();
        sums[threadIdx.x] += left;
      }
      __syncthreads();
      const A upto = s.exclusive ? (threadIdx.x > 0 ? sums[threadIdx.x - 1] : A(0)) : sums[threadIdx.x];
      if (i < s.length) out[at] = Store<T>(before + upto);
      before += sums[kThreads - 1];
      __syncthreads();
    }
  }
}

// A thread a line: many short lines.
template <typename T> __global__ void EachLineKernel(Scan s, const T* x, T* out) {
  using A = compute_t<T>;
  for (int64_t line = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; line < s.outer * s.inner;
       line += int64_t(gridDim.x) * blockDim.x) {
    const int64_t base = BaseOf(line, s.length, s.inner);
    A sum = 0;
    for (int64_t i = 0; i < s.length; ++i) {
      const int64_t at = base + (s.reverse ? s.length - 1 - i : i) * s.inner;
      const A own = Load(x[at]), before = sum;
      sum += own;
      out[at] = Store<T>(s.exclusive ? before : sum);
    }
  }
}

template <typename T> void RunScan(const Scan& s, const T* x, T* out, cudaStream_t stream) {
  const int64_t lines = s.outer * s.inner;
  if (s.length > 128)
    LinesKernel<T><<<static_cast<int>(std::min<int64_t>(lines, 1 << 30)), kThreads, 0, stream>>>(s, x, out);
  else EachLineKernel<T><<<Blocks(lines), kThreads, 0, stream>>>(s, x, out);
}

// Whether a at place i comes before b at place j.
template <typename A> __device__ __forceinline__ bool Before(A a, int64_t i, A b, int64_t j, bool descending) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan && b_nan) return i < j;
  if (a_nan || b_nan) return a_nan == descending;
  if (a == b) return i < j;
  return descending ? a > b : a < b;
}

// A thread an element: its place is the number of elements before it. Quadratic in the length, which is short wherever
// inference sorts; any length is right.
template <typename T> __global__ void RankKernel(Order o, const T* x, T* out, int64_t* indices) {
  const int64_t n = o.outer * o.length * o.inner;
  for (int64_t e = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; e < n; e += int64_t(gridDim.x) * blockDim.x) {
    const int64_t i = e / o.inner % o.length, first = e - i * o.inner;
    const auto own = Load(x[e]);
    int64_t rank = 0;
    for (int64_t j = 0; j < o.length; ++j) rank += Before(Load(x[first + j * o.inner]), j, own, i, o.descending);
    if (rank >= o.k) continue;
    const int64_t to = (e / o.inner / o.length * o.k + rank) * o.inner + e % o.inner;
    out[to] = x[e];
    indices[to] = i;
  }
}

}  // namespace

void CumSum(Dtype dtype, const Scan& s, const void* x, void* out, cudaStream_t stream) {
  if (s.outer * s.length * s.inner == 0) return;
  NVGPU_NUMBERS(dtype, "cumsum", RunScan(s, static_cast<const T*>(x), static_cast<T*>(out), stream));
  Check(cudaGetLastError(), "cumsum");
}

void Sorted(Dtype dtype, const Order& o, const void* x, void* out, int64_t* indices, cudaStream_t stream) {
  const int64_t n = o.outer * o.length * o.inner;
  if (n == 0 || o.k == 0) return;
  NVGPU_NUMBERS(dtype, "argsort, topk",
                RankKernel<T>
                <<<Blocks(n), kThreads, 0, stream>>>(o, static_cast<const T*>(x), static_cast<T*>(out), indices));
  Check(cudaGetLastError(), "argsort, topk");
}

}  // namespace nvgpu
