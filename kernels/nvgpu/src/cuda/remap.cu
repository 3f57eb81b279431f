#include "remap.h"

#include <cstring>

#include "indexing.cuh"

namespace nvgpu {
namespace {

// Neighbouring axes that stay as they are become one: an image batch [N, C, H, W], padded, has 3 axes.
Window Merged(const Window& window) {
  Window merged;
  bool whole = false;  // the last axis of `merged` stays as it is
  for (int i = 0; i < window.rank; ++i) {
    bool stays = window.before[i] == 0 && window.from[i] == window.to[i];
    if (stays && whole) {
      merged.from[merged.rank - 1] *= window.from[i];
      merged.to[merged.rank - 1] *= window.to[i];
    } else {
      merged.from[merged.rank] = window.from[i];
      merged.to[merged.rank] = window.to[i];
      merged.before[merged.rank++] = window.before[i];
    }
    whole = stays;
  }
  return merged;
}

// The source's coordinate, in [0, dim) but for Border::kConstant.
template <typename Index, Border kBorder>
__device__ __forceinline__ Index Within(Index at, Index dim) {
  if (kBorder == Border::kCircular) {
    Index rest = at % dim;
    return rest < 0 ? rest + dim : rest;
  }
  if (kBorder == Border::kReflect) {
    if (at < 0) at = -at;
    if (at >= dim) at = 2 * (dim - 1) - at;
  }
  if (kBorder != Border::kConstant) at = at < 0 ? 0 : (at >= dim ? dim - 1 : at);
  return at;
}

template <typename T, typename Index, Border kBorder>
__global__ void WindowKernel(const __grid_constant__ Window window, T outside, const T* from, T* to, Index n) {
  NVGPU_EACH(Index, i, n) {
    Index rest = i;
    int64_t source = 0, stride = 1;
    bool inside = true;
    for (int axis = window.rank - 1; axis >= 0; --axis) {
      Index size = static_cast<Index>(window.to[axis]), dim = static_cast<Index>(window.from[axis]);
      Index next = rest / size;
      Index at = Within<Index, kBorder>(rest - next * size - static_cast<Index>(window.before[axis]), dim);
      inside = inside && at >= 0 && at < dim;
      source += at * stride;
      stride *= dim;
      rest = next;
    }
    to[i] = inside ? from[source] : outside;
  }
}

template <typename T, typename Index>
void LaunchWindow(Border border, const Window& window, const void* outside, const T* from, T* to, int64_t n,
                  cudaStream_t stream) {
  T value{};
  if (border == Border::kConstant) std::memcpy(&value, outside, sizeof(T));
  auto kernel = WindowKernel<T, Index, Border::kConstant>;
  if (border == Border::kReflect) kernel = WindowKernel<T, Index, Border::kReflect>;
  if (border == Border::kReplicate) kernel = WindowKernel<T, Index, Border::kReplicate>;
  if (border == Border::kCircular) kernel = WindowKernel<T, Index, Border::kCircular>;
  kernel<<<Blocks(n), kThreads, 0, stream>>>(window, value, from, to, static_cast<Index>(n));
}

template <typename T, typename Index>
__global__ void TriangleKernel(Index rows, Index columns, Index diagonal, bool lower, const T* from, T* to, Index n) {
  NVGPU_EACH(Index, i, n) {
    Index line = i / columns;
    Index above = (i - line * columns) - line % rows - diagonal;  // how far above the diagonal
    to[i] = (lower ? above <= 0 : above >= 0) ? from[i] : T{};
  }
}

}  // namespace

void CopyWindow(int64_t size, Border border, const Window& window, const void* outside, const void* from, void* to,
                cudaStream_t stream) {
  int64_t n = 1;
  for (int i = 0; i < window.rank; ++i) n *= window.to[i];
  if (n == 0) return;
  Window merged = Merged(window);
  NVGPU_BYTES(size, "pad, tile or roll",
              NVGPU_INDEX(n, LaunchWindow<T, Index>(border, merged, outside, static_cast<const T*>(from),
                                                    static_cast<T*>(to), n, stream)));
  Check(cudaGetLastError(), "pad, tile or roll");
}

void CopyTriangle(int64_t size, int64_t n, int64_t rows, int64_t columns, int64_t diagonal, bool lower,
                  const void* from, void* to, cudaStream_t stream) {
  if (n == 0) return;
  diagonal = std::max(-rows, std::min(columns, diagonal));  // further off is all or nothing, and would overflow
  NVGPU_BYTES(size, "tril or triu",
              NVGPU_INDEX(n, TriangleKernel<T, Index><<<Blocks(n), kThreads, 0, stream>>>(
                                 Index(rows), Index(columns), Index(diagonal), lower, static_cast<const T*>(from),
                                 static_cast<T*>(to), Index(n))));
  Check(cudaGetLastError(), "tril or triu");
}

}  // namespace nvgpu
