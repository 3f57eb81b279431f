#include "conv.h"
#include "device.cuh"

namespace nvgpu {
namespace {

template <typename T>
__global__ void PadKernel(PadShape s, const T* x, T* out, int64_t n) {
  const int64_t out_width = s.left + s.width + s.right, out_height = s.top + s.height + s.bottom;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t pixel = i / s.inner, line = pixel / out_width, image = line / out_height;
    int64_t column = pixel - line * out_width - s.left, row = line - image * out_height - s.top;
    bool inside = row >= 0 && row < s.height && column >= 0 && column < s.width;
    int64_t from = ((image * s.height + row) * s.width + column) * s.inner + (i - pixel * s.inner);
    out[i] = inside ? x[from] : T{};
  }
}

template <typename T>
__global__ void SwapKernel(int64_t rows, int64_t columns, const T* x, T* out, int64_t n) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t line = i / rows, outer = line / columns;  // out is [outer, columns, rows]
    out[i] = x[(outer * rows + (i - line * rows)) * columns + (line - outer * columns)];
  }
}

}  // namespace

void PadImage(size_t element_size, const PadShape& s, const void* x, void* out, cudaStream_t stream) {
  int64_t n = s.outer * (s.top + s.height + s.bottom) * (s.left + s.width + s.right) * s.inner;
  if (n == 0) return;
  NVGPU_BYTES(element_size, "pad",
              PadKernel<T><<<Blocks(n), kThreads, 0, stream>>>(s, static_cast<const T*>(x), static_cast<T*>(out), n));
  Check(cudaGetLastError(), "pad");
}

void SwapLastAxes(size_t element_size, int64_t outer, int64_t rows, int64_t columns, const void* x, void* out,
                  cudaStream_t stream) {
  int64_t n = outer * rows * columns;
  if (n == 0) return;
  NVGPU_BYTES(element_size, "transpose",
              SwapKernel<T><<<Blocks(n), kThreads, 0, stream>>>(rows, columns, static_cast<const T*>(x),
                                                                static_cast<T*>(out), n));
  Check(cudaGetLastError(), "transpose");
}

}  // namespace nvgpu
