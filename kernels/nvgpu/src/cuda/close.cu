#include "close.h"

#include "device.cuh"

namespace nvgpu {
namespace {

struct Equal {
  template <typename A> __device__ bool operator()(A x, A y) const { return x == y; }
};

struct Close {
  Tolerance by;
  template <typename A> __device__ bool operator()(A x, A y) const {
    if (x == y) return true;
    if (x != x || y != y) return by.equal_nan && x != x && y != y;
    const double distance = fabs(static_cast<double>(x) - static_cast<double>(y));
    return isfinite(distance) && distance <= by.absolute + by.relative * fabs(static_cast<double>(y));
  }
};

template <typename T, typename Test>
__global__ void EachKernel(Test test, const T* x, const T* y, bool* out, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
    out[i] = test(static_cast<compute_t<T>>(x[i]), static_cast<compute_t<T>>(y[i]));
}

// out is true before; every thread that finds a difference writes the same byte.
template <typename T, typename Test>
__global__ void AllKernel(Test test, const T* x, const T* y, bool* out, int64_t n) {
  bool all = true;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
    all = all && test(static_cast<compute_t<T>>(x[i]), static_cast<compute_t<T>>(y[i]));
  if (!all) *out = false;
}

template <typename T, typename Test>
void RunAll(Test test, const void* x, const void* y, bool* out, int64_t n, cudaStream_t stream) {
  AllKernel<T, Test>
      <<<Blocks(n, 4), kThreads, 0, stream>>>(test, static_cast<const T*>(x), static_cast<const T*>(y), out, n);
}

}  // namespace

void EqualAll(Dtype dtype, const void* x, const void* y, bool* out, int64_t n, cudaStream_t stream) {
  Check(cudaMemsetAsync(out, 1, 1, stream), "equal_all");
  if (n == 0) return;
  if (dtype == Dtype::kBool) {
    RunAll<bool>(Equal(), x, y, out, n, stream);
  } else {
    NVGPU_NUMBERS(dtype, "equal_all", RunAll<T>(Equal(), x, y, out, n, stream));
  }
  Check(cudaGetLastError(), "equal_all");
}

void AllClose(Dtype dtype, const void* x, const void* y, bool* out, int64_t n, const Tolerance& by,
              cudaStream_t stream) {
  Check(cudaMemsetAsync(out, 1, 1, stream), "allclose");
  if (n == 0) return;
  NVGPU_NUMBERS(dtype, "allclose", RunAll<T>(Close{by}, x, y, out, n, stream));
  Check(cudaGetLastError(), "allclose");
}

void IsClose(Dtype dtype, const void* x, const void* y, bool* out, int64_t n, const Tolerance& by,
             cudaStream_t stream) {
  if (n == 0) return;
  NVGPU_NUMBERS(dtype, "isclose",
                EachKernel<T, Close><<<Blocks(n), kThreads, 0, stream>>>(Close{by}, static_cast<const T*>(x),
                                                                         static_cast<const T*>(y), out, n));
  Check(cudaGetLastError(), "isclose");
}

}  // namespace nvgpu
