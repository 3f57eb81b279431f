#include "device.cuh"
#include "linear.h"

namespace nvgpu {
namespace {

template <typename T>
__global__ void ExpandKernel(Strided axes, compute_t<T> scale, const T* x, T* out, int64_t n) {
  int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    out[i] = Store<T>(scale * Load(x[Offset(axes, i)]));
  }
}

struct Relu {
  template <typename C> __device__ __forceinline__ C operator()(C x) const { return x < C(0) ? C(0) : x; }
};

struct GeluTanh {
  template <typename C> __device__ __forceinline__ C operator()(C x) const {
    const C inner = C(0.7978845608028654) * (x + C(0.044715) * x * x * x);  // sqrt(2 / pi)
    return C(0.5) * x * (C(1) + tanh(inner));
  }
};

template <typename T, typename F>
__global__ void ActivateKernel(F f, T* x, int64_t n) {
  int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) x[i] = Store<T>(f(Load(x[i])));
}

}  // namespace

void Expand(Dtype dtype, const Strided& x_axes, double scale, const void* x, void* out, cudaStream_t stream) {
  int64_t n = x_axes.numel();
  if (n == 0) return;
  NVGPU_FLOATS(dtype, "expand",
               ExpandKernel<T><<<Blocks(n), kThreads, 0, stream>>>(x_axes, static_cast<compute_t<T>>(scale),
                                                                  static_cast<const T*>(x), static_cast<T*>(out), n));
  Check(cudaGetLastError(), "expand");
}

void Activate(Dtype dtype, Activation activation, void* x, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  if (activation == Activation::kRelu) {
    NVGPU_FLOATS(dtype, "relu", ActivateKernel<T><<<Blocks(n), kThreads, 0, stream>>>(Relu(), static_cast<T*>(x), n));
  } else {
    NVGPU_FLOATS(dtype, "gelu",
                 ActivateKernel<T><<<Blocks(n), kThreads, 0, stream>>>(GeluTanh(), static_cast<T*>(x), n));
  }
  Check(cudaGetLastError(), "activation");
}

}  // namespace nvgpu
