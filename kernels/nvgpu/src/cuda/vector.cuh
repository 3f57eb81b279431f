// What the elementwise kernels share: vectors of up to 16 bytes, a unary kernel, and where a vector lies.
#pragma once
#include "axes.h"
#include "device.cuh"

namespace nvgpu {

template <typename T, int N> struct alignas(sizeof(T) * N) Vector {
  T v[N];
};

// Elements in a step: 16 bytes of the wider type.
template <typename A, typename B> constexpr int kWidth = 16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));
// Steps of a thread, all loaded before the first is used: enough bytes in flight to fill the memory's latency.
template <int N> constexpr int kSteps = N == 1 ? 8 : 2;

template <int N> inline unsigned BlocksOf(int64_t vectors) {
  constexpr int64_t block = int64_t(kThreads) * kSteps<N>;
  return static_cast<unsigned>(std::max<int64_t>((vectors + block - 1) / block, 1));
}

inline bool Aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

__device__ __forceinline__ uint32_t Quotient(uint32_t i, const Divider& by) {
  return (__umulhi(i, by.magic) + i) >> by.shift;
}

// Where vector i of each tensor begins, in elements.
template <int K> __device__ __forceinline__ void Locate(const Walk<K>& walk, uint32_t i, int64_t (&at)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) at[k] = 0;
  for (int axis = walk.rank - 1; axis > 0; --axis) {
    uint32_t next = Quotient(i, walk.dims[axis]);
    uint32_t here = i - next * walk.dims[axis].divisor;
#pragma unroll
    for (int k = 0; k < K; ++k) at[k] += here * walk.strides[k][axis];
    i = next;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) at[k] += i * walk.strides[k][0];
}

template <int N, typename T> __device__ __forceinline__ Vector<T, N> Read(const T* from, bool spread) {
  if (!spread || N == 1) return *reinterpret_cast<const Vector<T, N>*>(from);
  Vector<T, N> all;
  T one = *from;
#pragma unroll
  for (int j = 0; j < N; ++j) all.v[j] = one;
  return all;
}

// out[i] = f(x[i]). A thread writes only where it has read, so out may be x when the types are one.
template <int N, typename In, typename Out, typename F>
__global__ void MapKernel(F f, const In* x, Out* out, int64_t n) {
  int64_t vectors = n / N, first = int64_t(blockIdx.x) * (kThreads * kSteps<N>) + threadIdx.x;
  Vector<In, N> in[kSteps<N>];
#pragma unroll
  for (int s = 0; s < kSteps<N>; ++s) {
    int64_t i = first + s * kThreads;
    if (i < vectors) in[s] = reinterpret_cast<const Vector<In, N>*>(x)[i];
  }
#pragma unroll
  for (int s = 0; s < kSteps<N>; ++s) {
    int64_t i = first + s * kThreads;
    if (i >= vectors) continue;
    Vector<Out, N> result;
#pragma unroll
    for (int j = 0; j < N; ++j) result.v[j] = Store<Out>(f(Load(in[s].v[j])));
    reinterpret_cast<Vector<Out, N>*>(out)[i] = result;
  }
  if (first < n - vectors * N) out[vectors * N + first] = Store<Out>(f(Load(x[vectors * N + first])));
}

template <typename In, typename Out, typename F>
void Map(F f, const void* x, void* out, int64_t n, cudaStream_t stream) {
  constexpr int N = kWidth<In, Out>;
  const In* in = static_cast<const In*>(x);
  Out* to = static_cast<Out*>(out);
  if (n == 0) return;
  if (Aligned(x, sizeof(In) * N) && Aligned(out, sizeof(Out) * N))
    MapKernel<N><<<BlocksOf<N>(n / N), kThreads, 0, stream>>>(f, in, to, n);
  else
    MapKernel<1><<<BlocksOf<1>(n), kThreads, 0, stream>>>(f, in, to, n);
  Check(cudaGetLastError(), "elementwise");
}

}  // namespace nvgpu
