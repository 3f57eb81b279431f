// Kernels of two and three tensors that numpy's rules make one shape; the result is contiguous.
#pragma once
#include "vector.cuh"

namespace nvgpu {

template <int N, typename T, typename Out, typename F>
__global__ void BinaryKernel(const __grid_constant__ Walk<2> walk, F f, const T* x, const T* y, Out* out) {
  uint32_t first = blockIdx.x * (kThreads * kSteps<N>) + threadIdx.x;
  Vector<T, N> a[kSteps<N>], b[kSteps<N>];
#pragma unroll
  for (int s = 0; s < kSteps<N>; ++s) {
    if (first + s * kThreads >= walk.vectors) continue;
    int64_t at[2];
    Locate(walk, first + s * kThreads, at);
    a[s] = Read<N>(x + at[0], walk.spread[0]);
    b[s] = Read<N>(y + at[1], walk.spread[1]);
  }
#pragma unroll
  for (int s = 0; s < kSteps<N>; ++s) {
    uint32_t i = first + s * kThreads;
    Vector<Out, N> result;
    if (i >= walk.vectors) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) result.v[j] = Store<Out>(f(Load(a[s].v[j]), Load(b[s].v[j])));
    reinterpret_cast<Vector<Out, N>*>(out)[i] = result;
  }
  if (first < walk.tail) {
    int64_t i = int64_t(walk.vectors) * N + first;
    out[i] = Store<Out>(f(Load(x[walk.spread[0] ? 0 : i]), Load(y[walk.spread[1] ? 0 : i])));
  }
}

// Vectors fit if every tensor's rows do; a single row may end in less than a vector.
template <int K> bool RowsFit(const Axes<K>& axes, int n) { return axes.rank == 1 || axes.dims[axes.inner()] % n == 0; }

// xs and ys have the result's dims.
template <typename T, typename Out, typename F>
void Binary(F f, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out, cudaStream_t stream) {
  constexpr int N = kWidth<T, Out>;
  if (xs.numel() == 0) return;
  EachPart(Merged<3>({xs, ys, RowMajor(xs)}), [&](const Axes<3>& axes, const int64_t (&offsets)[3]) {
    const T* a = static_cast<const T*>(x) + offsets[0];
    const T* b = static_cast<const T*>(y) + offsets[1];
    Out* to = static_cast<Out*>(out) + offsets[2];
    bool wide = RowsFit(axes, N) && Steps(axes, 0, a, N, sizeof(T)) && Steps(axes, 1, b, N, sizeof(T)) &&
                Aligned(to, N * sizeof(Out));
    if (wide)
      BinaryKernel<N><<<BlocksOf<N>(axes.numel() / N), kThreads, 0, stream>>>(WalkOf<2>(axes, N), f, a, b, to);
    else
      BinaryKernel<1><<<BlocksOf<1>(axes.numel()), kThreads, 0, stream>>>(WalkOf<2>(axes, 1), f, a, b, to);
  });
  Check(cudaGetLastError(), "elementwise with broadcast");
}

template <int N, typename T>
__global__ void SelectKernel(const __grid_constant__ Walk<3> walk, const uint8_t* mask, const T* x, const T* y,
                             T* out) {
  uint32_t first = blockIdx.x * (kThreads * kSteps<N>) + threadIdx.x;
  Vector<uint8_t, N> m[kSteps<N>];
  Vector<T, N> a[kSteps<N>], b[kSteps<N>];
#pragma unroll
  for (int s = 0; s < kSteps<N>; ++s) {
    if (first + s * kThreads >= walk.vectors) continue;
    int64_t at[3];
    Locate(walk, first + s * kThreads, at);
    m[s] = Read<N>(mask + at[0], walk.spread[0]);
    a[s] = Read<N>(x + at[1], walk.spread[1]);
    b[s] = Read<N>(y + at[2], walk.spread[2]);
  }
#pragma unroll
  for (int s = 0; s < kSteps<N>; ++s) {
    uint32_t i = first + s * kThreads;
    if (i >= walk.vectors) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) a[s].v[j] = m[s].v[j] ? a[s].v[j] : b[s].v[j];
    reinterpret_cast<Vector<T, N>*>(out)[i] = a[s];
  }
  if (first < walk.tail) {
    int64_t i = int64_t(walk.vectors) * N + first;
    out[i] = mask[walk.spread[0] ? 0 : i] ? x[walk.spread[1] ? 0 : i] : y[walk.spread[2] ? 0 : i];
  }
}

}  // namespace nvgpu
