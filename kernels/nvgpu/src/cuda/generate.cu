#include "generate.h"

#include <cstring>

#include "indexing.cuh"

namespace nvgpu {
namespace {

template <typename T, typename Number>
__global__ void ArangeKernel(Number start, Number step, T* to, int64_t n) {
  NVGPU_EACH(int64_t, i, n) to[i] = static_cast<T>(start + static_cast<Number>(i) * step);
}

// Counts from the nearer end, so that the last number is `stop` itself.
template <typename T>
__global__ void LinspaceKernel(double start, double stop, double step, T* to, int64_t n) {
  NVGPU_EACH(int64_t, i, n) to[i] = static_cast<T>(i < n / 2 || n == 1 ? start + i * step : stop - (n - 1 - i) * step);
}

template <typename T, typename Index>
__global__ void EyeKernel(T one, Index columns, T* to, Index n) {
  NVGPU_EACH(Index, i, n) {
    Index row = i / columns;
    to[i] = i - row * columns == row ? one : T{};
  }
}

template <typename Id, typename Index>
__global__ void OneHotKernel(const Id* ids, Index classes, float* to, Index n) {
  NVGPU_EACH(Index, i, n) {
    Index row = i / classes;
    to[i] = ids[row] == i - row * classes ? 1.0f : 0.0f;
  }
}

}  // namespace

void Arange(Dtype dtype, int64_t start, int64_t step, int64_t n, void* to, cudaStream_t stream) {
  if (n == 0) return;
  switch (dtype) {
    NVGPU_CASE(kInt32, int32_t, ArangeKernel<<<Blocks(n), kThreads, 0, stream>>>(start, step, static_cast<T*>(to), n))
    NVGPU_CASE(kInt64, int64_t, ArangeKernel<<<Blocks(n), kThreads, 0, stream>>>(start, step, static_cast<T*>(to), n))
    NVGPU_BAD_DTYPE("arange of integers");
  }
  Check(cudaGetLastError(), "arange");
}

void Arange(Dtype dtype, double start, double step, int64_t n, void* to, cudaStream_t stream) {
  if (n == 0) return;
  NVGPU_FLOATS(dtype, "arange", ArangeKernel<<<Blocks(n), kThreads, 0, stream>>>(start, step, static_cast<T*>(to), n));
  Check(cudaGetLastError(), "arange");
}

void Linspace(Dtype dtype, double start, double stop, int64_t n, void* to, cudaStream_t stream) {
  if (n == 0) return;
  double step = n > 1 ? (stop - start) / (n - 1) : 0;
  NVGPU_NUMBERS(dtype, "linspace",
                LinspaceKernel<<<Blocks(n), kThreads, 0, stream>>>(start, stop, step, static_cast<T*>(to), n));
  Check(cudaGetLastError(), "linspace");
}

void Eye(int64_t size, const void* one, int64_t rows, int64_t columns, void* to, cudaStream_t stream) {
  int64_t n = rows * columns;
  if (n == 0) return;
  NVGPU_BYTES(size, "eye", T value; std::memcpy(&value, one, sizeof(T));
              NVGPU_INDEX(n, EyeKernel<T, Index><<<Blocks(n), kThreads, 0, stream>>>(
                                 value, Index(columns), static_cast<T*>(to), Index(n))));
  Check(cudaGetLastError(), "eye");
}

void OneHot(Dtype id_type, const void* ids, int64_t n, int64_t classes, float* to, cudaStream_t stream) {
  int64_t all = n * classes;
  if (all == 0) return;
  if (id_type == Dtype::kInt32) {
    NVGPU_INDEX(all, OneHotKernel<int32_t, Index><<<Blocks(all), kThreads, 0, stream>>>(
                         static_cast<const int32_t*>(ids), Index(classes), to, Index(all)));
  } else {
    NVGPU_INDEX(all, OneHotKernel<int64_t, Index><<<Blocks(all), kThreads, 0, stream>>>(
                         static_cast<const int64_t*>(ids), Index(classes), to, Index(all)));
  }
  Check(cudaGetLastError(), "one_hot");
}

}  // namespace nvgpu
