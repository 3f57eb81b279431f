#include "copy.h"

#include <cstring>
#include <numeric>

#include "vector.cuh"

namespace nvgpu {
namespace {

constexpr int kFrom = 0, kTo = 1;

// Axes in the order of the target's memory, so that writes are neighbours whatever the order of x.
Axes<2> InOrderOf(const Strided& from, const Strided& to) {
  int order[kMaxRank];
  std::iota(order, order + to.rank, 0);
  auto outer = [&](int a, int b) { return std::abs(to.strides[a]) > std::abs(to.strides[b]); };
  std::stable_sort(order, order + to.rank, outer);
  Strided sorted[2] = {from, to};
  for (int i = 0; i < to.rank; ++i) {
    sorted[kFrom].dims[i] = sorted[kTo].dims[i] = to.dims[order[i]];
    sorted[kFrom].strides[i] = from.strides[order[i]];
    sorted[kTo].strides[i] = to.strides[order[i]];
  }
  return Merged<2>(sorted);
}

// Takes neighbours for one element, up to 16 bytes, where both sides keep them together; returns its size.
int Widen(Axes<2>* axes, int size, const void* x, const void* out) {
  int wide = 16, inner = axes->inner();
  if (axes->strides[kFrom][inner] != 1 || axes->strides[kTo][inner] != 1) return size;
  auto fits = [&](int n) {
    return axes->dims[inner] % n == 0 && Steps(*axes, kFrom, x, n, size) && Steps(*axes, kTo, out, n, size);
  };
  while (wide > size && !fits(wide / size)) wide /= 2;
  axes->dims[inner] /= wide / size;
  for (int i = 0; i < inner; ++i) axes->strides[kFrom][i] /= wide / size;
  for (int i = 0; i < inner; ++i) axes->strides[kTo][i] /= wide / size;
  return wide;
}

// Loads in flight in a thread.
template <typename T> constexpr int kLoads = sizeof(T) >= 8 ? 4 : 8;

template <typename T>
__global__ void StridedKernel(const __grid_constant__ Walk<2> walk, const T* __restrict__ x, T* __restrict__ out) {
  uint32_t first = blockIdx.x * (kThreads * kLoads<T>) + threadIdx.x;
  T held[kLoads<T>];
  int64_t to[kLoads<T>];
#pragma unroll
  for (int s = 0; s < kLoads<T>; ++s) {
    if (first + s * kThreads >= walk.vectors) continue;
    int64_t at[2];
    Locate(walk, first + s * kThreads, at);
    held[s] = x[at[kFrom]];
    to[s] = at[kTo];
  }
#pragma unroll
  for (int s = 0; s < kLoads<T>; ++s)
    if (first + s * kThreads < walk.vectors) out[to[s]] = held[s];
}

// Two axes that change places: `a` has stride 1 in x, `b` in out. The other axes are `others`.
struct Swap {
  int64_t a_size, b_size;
  int64_t a_to, b_from;  // a's stride in out, b's in x
  Divider a_tiles, b_tiles;
  Walk<2> others;
};

template <typename T> constexpr int kTile = sizeof(T) <= 2 ? 64 : 32;
constexpr int kTileRows = kThreads / 32;

// A tile is read along a and written along b. The pad puts a column's elements into different banks.
template <typename T>
__global__ void SwapKernel(const __grid_constant__ Swap swap, const T* __restrict__ x, T* __restrict__ out) {
  constexpr int K = kTile<T>, kPad = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  __shared__ T tile[K][K + kPad];
  uint32_t ab = Quotient(blockIdx.x, swap.b_tiles), other = Quotient(ab, swap.a_tiles);
  int64_t b0 = int64_t(blockIdx.x - ab * swap.b_tiles.divisor) * K, a0 = int64_t(ab - other * swap.a_tiles.divisor) * K;
  int64_t at[2];
  Locate(swap.others, other, at);
  x += at[kFrom] + b0 * swap.b_from + a0;
  out += at[kTo] + a0 * swap.a_to + b0;
  int a_size = static_cast<int>(min(swap.a_size - a0, int64_t(K)));
  int b_size = static_cast<int>(min(swap.b_size - b0, int64_t(K)));
#pragma unroll
  for (int i = 0; i < K * K / kThreads; ++i) {
    int row = threadIdx.x / 32 + i / (K / 32) * kTileRows, column = threadIdx.x % 32 + i % (K / 32) * 32;
    if (row < b_size && column < a_size) tile[row][column] = x[row * swap.b_from + column];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < K * K / kThreads; ++i) {
    int row = threadIdx.x / 32 + i / (K / 32) * kTileRows, column = threadIdx.x % 32 + i % (K / 32) * 32;
    if (row < a_size && column < b_size) out[row * swap.a_to + column] = tile[column][row];
  }
}

// The axis along which x is contiguous, if it pays to go through tiles; else -1.
int SwappedAxis(const Axes<2>& axes) {
  constexpr int kWorth = 16;
  int inner = axes.inner();
  if (axes.strides[kTo][inner] != 1 || axes.dims[inner] < kWorth) return -1;
  for (int i = 0; i < inner; ++i)
    if (axes.strides[kFrom][i] == 1 && axes.dims[i] >= kWorth) return i;
  return -1;
}

Axes<2> Without(const Axes<2>& axes, int axis) {
  Axes<2> rest;
  for (int i = 0; i < axes.inner(); ++i) {
    if (i == axis) continue;
    rest.dims[rest.rank] = axes.dims[i];
    for (int k = 0; k < 2; ++k) rest.strides[k][rest.rank] = axes.strides[k][i];
    ++rest.rank;
  }
  return rest;
}

template <typename T> void LaunchSwap(const Axes<2>& axes, int a, const T* x, T* out, cudaStream_t stream) {
  int b = axes.inner();
  Axes<2> others = Without(axes, a);
  int64_t a_tiles = (axes.dims[a] + kTile<T> - 1) / kTile<T>, b_tiles = (axes.dims[b] + kTile<T> - 1) / kTile<T>;
  Swap swap = {axes.dims[a], axes.dims[b], axes.strides[kTo][a], axes.strides[kFrom][b], Divider(a_tiles),
               Divider(b_tiles), WalkOf<2>(others, 1)};
  SwapKernel<T><<<static_cast<unsigned>(a_tiles * b_tiles * others.numel()), kThreads, 0, stream>>>(swap, x, out);
}

template <typename T> void Launch(const Axes<2>& axes, const T* x, T* out, cudaStream_t stream) {
  int a = SwappedAxis(axes);
  if (a >= 0) return LaunchSwap(axes, a, x, out, stream);
  int64_t block = int64_t(kThreads) * kLoads<T>, blocks = (axes.numel() + block - 1) / block;
  StridedKernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(WalkOf<2>(axes, 1), x, out);
}

template <int N, typename T> __global__ void FillKernel(T value, T* out, int64_t n) {
  int64_t vectors = n / N, first = int64_t(blockIdx.x) * (kThreads * kSteps<N>) + threadIdx.x;
  Vector<T, N> all;
#pragma unroll
  for (int j = 0; j < N; ++j) all.v[j] = value;
#pragma unroll
  for (int s = 0; s < kSteps<N>; ++s)
    if (first + s * kThreads < vectors) reinterpret_cast<Vector<T, N>*>(out)[first + s * kThreads] = all;
  if (first < n - vectors * N) out[vectors * N + first] = value;
}

template <typename T> void FillAs(const void* host, T* out, int64_t n, cudaStream_t stream) {
  constexpr int N = kWidth<T, T>;
  T value;
  std::memcpy(&value, host, sizeof(T));
  if (Aligned(out, 16))
    FillKernel<N><<<BlocksOf<N>(n / N), kThreads, 0, stream>>>(value, out, n);
  else
    FillKernel<1><<<BlocksOf<1>(n), kThreads, 0, stream>>>(value, out, n);
}

constexpr int64_t kChunk = 3584, kLargest = 64 << 10;  // a kernel's arguments may have 4 KiB
struct Chunk {
  uint8_t bytes[kChunk];
};

__global__ void UploadKernel(const __grid_constant__ Chunk chunk, uint8_t* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = chunk.bytes[i];
}

}  // namespace

void CopyStrided(int size, const Strided& from, const Strided& to, const void* x, void* out, cudaStream_t stream) {
  if (to.numel() == 0) return;
  Axes<2> axes = InOrderOf(from, to);
  if (axes.rank == 1 && axes.strides[kFrom][0] == 1 && axes.strides[kTo][0] == 1)
    return Check(cudaMemcpyAsync(out, x, axes.numel() * size, cudaMemcpyDeviceToDevice, stream), "copy");
  int wide = Widen(&axes, size, x, out);
  EachPart(axes, [&](const Axes<2>& part, const int64_t (&offsets)[2]) {
    NVGPU_BYTES(wide, "strided copy",
                Launch(part, static_cast<const T*>(x) + offsets[kFrom], static_cast<T*>(out) + offsets[kTo], stream));
  });
  Check(cudaGetLastError(), "strided copy");
}

void Fill(int size, const void* value, void* out, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  NVGPU_BYTES(size, "fill", FillAs(value, static_cast<T*>(out), n, stream));
  Check(cudaGetLastError(), "fill");
}

void Upload(const void* host, void* device, int64_t bytes, cudaStream_t stream) {
  if (bytes > kLargest) return Check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "upload");
  for (int64_t begin = 0; begin < bytes; begin += kChunk) {
    Chunk chunk;
    int n = static_cast<int>(std::min(kChunk, bytes - begin));
    std::memcpy(chunk.bytes, static_cast<const char*>(host) + begin, n);
    UploadKernel<<<1, kThreads, 0, stream>>>(chunk, static_cast<uint8_t*>(device) + begin, n);
  }
  Check(cudaGetLastError(), "upload");
}

}  // namespace nvgpu
