#include "norm.h"

#include "reduce.cuh"

namespace nvgpu {
namespace {

// Of some elements: how many, their mean, and the sum of squares about it.
template <typename A> struct Moments {
  A count, mean, square;
};

// Chan's rule: as exact as a second pass about the mean, but the input is read once.
struct Merge {
  template <typename A> __device__ Moments<A> operator()(const Moments<A>& a, const Moments<A>& b) const {
    const A count = a.count + b.count;
    if (count == A(0)) return a;
    const A delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.square + b.square + delta * delta * a.count * share};
  }
};

template <typename T, int V> __device__ __forceinline__ Moments<compute_t<T>> MomentsOf(const Pack<T, V>& pack) {
  using A = compute_t<T>;
  A sum = 0, square = 0;
#pragma unroll
  for (int j = 0; j < V; ++j) sum += Load(pack.at[j]);
  const A mean = sum * (A(1) / A(V));
#pragma unroll
  for (int j = 0; j < V; ++j) square += (Load(pack.at[j]) - mean) * (Load(pack.at[j]) - mean);
  return {A(V), mean, square};
}

// A block for each piece of each group; V divides whatever is a piece's begin or end.
template <typename T, int V>
__global__ void MomentsKernel(const T* x, Moments<compute_t<T>>* partial, int64_t groups, int64_t size, Split split) {
  using A = compute_t<T>;
  for (int64_t b = blockIdx.x; b < groups * split.count; b += gridDim.x) {
    const int64_t begin = b % split.count * split.chunk, end = min(begin + split.chunk, size);
    const auto* packs = reinterpret_cast<const Pack<T, V>*>(x + b / split.count * size);
    Moments<A> own{A(0), A(0), A(0)};
#pragma unroll 4
    for (int64_t p = begin / V + threadIdx.x; p < end / V; p += blockDim.x)
      own = Merge()(own, MomentsOf<T, V>(packs[p]));
    own = BlockReduce(own, Moments<A>{A(0), A(0), A(0)}, Merge());
    if (threadIdx.x == 0) partial[b] = own;
  }
}

// A warp for each group.
template <typename A> __global__ void MergeKernel(const Moments<A>* partial, int64_t pieces, A* mean, A* variance) {
  Moments<A> own{A(0), A(0), A(0)};
  for (int64_t i = threadIdx.x; i < pieces; i += 32) own = Merge()(own, partial[blockIdx.x * pieces + i]);
  own = WarpReduce(own, 32, Merge());
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = own.mean;
    variance[blockIdx.x] = own.square / own.count;
  }
}

// A block for each `chunk` elements of each channel's plane.
template <typename T, typename S, int V> __global__ void ApplyKernel(GroupNorm n, int64_t chunks, int64_t chunk) {
  using A = compute_t<T>;
  for (int64_t b = blockIdx.x; b < n.batch * n.channels * chunks; b += gridDim.x) {
    const int64_t plane = b / chunks, channel = plane % n.channels, group = plane / (n.channels / n.groups);
    const A mean = static_cast<const A*>(n.mean)[group];
    const A rstd = rsqrt(static_cast<const A*>(n.variance)[group] + static_cast<A>(n.epsilon));
    const A scale = rstd * (n.scale ? static_cast<A>(static_cast<const S*>(n.scale)[channel]) : A(1));
    const A shift = n.shift ? static_cast<A>(static_cast<const S*>(n.shift)[channel]) : A(0);
    const auto* from = reinterpret_cast<const Pack<T, V>*>(static_cast<const T*>(n.x) + plane * n.area);
    auto* to = reinterpret_cast<Pack<T, V>*>(static_cast<T*>(n.out) + plane * n.area);
    const int64_t begin = b % chunks * chunk, end = min(begin + chunk, n.area);
#pragma unroll 4
    for (int64_t p = begin / V + threadIdx.x; p < end / V; p += blockDim.x) {
      Pack<T, V> pack = from[p];
#pragma unroll
      for (int j = 0; j < V; ++j) pack.at[j] = Store<T>((Load(pack.at[j]) - mean) * scale + shift);
      to[p] = pack;
    }
  }
}

template <typename T, typename S> void Run(const GroupNorm& n, const Scratch& scratch, cudaStream_t stream) {
  using A = compute_t<T>;
  constexpr int V = kPackOf<T>;
  const int64_t groups = n.batch * n.groups, size = n.channels / n.groups * n.area, planes = n.batch * n.channels;
  const bool packed = Aligned(n.x) && Aligned(n.out) && n.area % V == 0;
  const Split split = SplitOf({groups, size, 1});
  const int64_t chunk = 4 * kThreads * V, chunks = (n.area + chunk - 1) / chunk;
  auto* partial = static_cast<Moments<A>*>(scratch(groups * split.count * sizeof(Moments<A>)));
  const T* x = static_cast<const T*>(n.x);
  if (packed)
    MomentsKernel<T, V><<<GridOf(groups * split.count), kThreads, 0, stream>>>(x, partial, groups, size, split);
  else MomentsKernel<T, 1><<<GridOf(groups * split.count), kThreads, 0, stream>>>(x, partial, groups, size, split);
  MergeKernel<A><<<static_cast<int>(groups), 32, 0, stream>>>(partial, split.count, static_cast<A*>(n.mean),
                                                              static_cast<A*>(n.variance));
  if (packed) ApplyKernel<T, S, V><<<GridOf(planes * chunks), kThreads, 0, stream>>>(n, chunks, chunk);
  else ApplyKernel<T, S, 1><<<GridOf(planes * chunks), kThreads, 0, stream>>>(n, chunks, chunk);
}

}  // namespace

void RunGroupNorm(const GroupNorm& n, const Scratch& scratch, cudaStream_t stream) {
  if (n.batch * n.channels * n.area == 0) return;
  if (n.affine == n.dtype) {
    NVGPU_FLOATS(n.dtype, "group_norm", Run<T, T>(n, scratch, stream));
  } else if (n.affine == Dtype::kFloat32 && n.dtype == Dtype::kFloat16) {
    Run<half_t, float>(n, scratch, stream);
  } else if (n.affine == Dtype::kFloat32 && n.dtype == Dtype::kBFloat16) {
    Run<bf16_t, float>(n, scratch, stream);
  } else {
    throw std::runtime_error("nvgpu: group_norm: scale and bias must have the input's dtype, or be float32");
  }
  Check(cudaGetLastError(), "group_norm");
}

}  // namespace nvgpu
