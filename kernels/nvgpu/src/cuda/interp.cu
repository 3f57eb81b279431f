#include "interp.h"

#include "indexing.cuh"
#include "pack.cuh"

namespace nvgpu {
namespace {

__device__ __forceinline__ int NearestAt(int at, float ratio, bool align_corners, int dim) {
  int source = static_cast<int>(align_corners ? ratio * at + 0.5f : ratio * at);
  return min(source, dim - 1);
}

// A block works on rows of the result; a thread makes kPack neighbours of a row and stores them at once.
template <typename T, int kPack>
__global__ void NearestKernel(const __grid_constant__ Resize r, const T* from, T* to) {
  int columns = r.out_w * r.channels;
  for (int64_t row = blockIdx.y; row < r.planes * r.out_h; row += gridDim.y) {
    int64_t plane = row / r.out_h;
    int y = NearestAt(static_cast<int>(row - plane * r.out_h), r.ratio_h, r.align_corners, r.in_h);
    const T* source = from + (plane * r.in_h + y) * r.in_w * r.channels;
    NVGPU_EACH(int, i, columns / kPack) {
      Pack<T, kPack> pack;
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        int column = i * kPack + k;
        int x = r.channels == 1 ? column : column / r.channels;
        pack.at[k] = source[NearestAt(x, r.ratio_w, r.align_corners, r.in_w) * int64_t(r.channels) + column -
                                x * int64_t(r.channels)];
      }
      reinterpret_cast<Pack<T, kPack>*>(to + row * columns)[i] = pack;
    }
  }
}

struct Between {
  int low, high;
  float part;  // of `high`
};

__device__ __forceinline__ Between BetweenAt(int at, float ratio, bool half_pixel, int dim) {
  float source = half_pixel ? fmaxf(ratio * (at + 0.5f) - 0.5f, 0.0f) : ratio * at;
  int low = min(static_cast<int>(source), dim - 1);
  return {low, min(low + 1, dim - 1), source - low};
}

template <typename T>
__global__ void BilinearKernel(const __grid_constant__ Resize r, const T* from, T* to) {
  using C = compute_t<T>;
  int columns = r.out_w * r.channels;
  for (int64_t row = blockIdx.y; row < r.planes * r.out_h; row += gridDim.y) {
    int64_t plane = row / r.out_h;
    Between y = BetweenAt(static_cast<int>(row - plane * r.out_h), r.ratio_h, r.half_pixel, r.in_h);
    const T* low = from + (plane * r.in_h + y.low) * r.in_w * r.channels;
    const T* high = from + (plane * r.in_h + y.high) * r.in_w * r.channels;
    NVGPU_EACH(int, i, columns) {
      int column = r.channels == 1 ? i : i / r.channels;
      int channel = i - column * r.channels;
      Between x = BetweenAt(column, r.ratio_w, r.half_pixel, r.in_w);
      int64_t left = x.low * int64_t(r.channels) + channel, right = x.high * int64_t(r.channels) + channel;
      C up = Load(low[left]) * C(1 - x.part) + Load(low[right]) * C(x.part);
      C down = Load(high[left]) * C(1 - x.part) + Load(high[right]) * C(x.part);
      to[row * columns + i] = Store<T>(up * C(1 - y.part) + down * C(y.part));
    }
  }
}

// Threads over the columns of a row, blocks over rows (at most what grid.y holds; the kernels loop).
dim3 RowGrid(const Resize& r, int columns) {
  int64_t rows = std::min<int64_t>(r.planes * r.out_h, 65535);
  return dim3(std::min((columns + kThreads - 1) / kThreads, 64), static_cast<unsigned>(rows));
}
int RowThreads(int columns) { return std::min(kThreads, (columns + 31) / 32 * 32); }

// The most neighbours, at most 16 bytes of them, that every row of the result starts and ends with.
template <typename T>
int PackOf(int64_t columns, const void* to) {
  return static_cast<int>(Widest(Bits(to) | Bits(columns * int64_t(sizeof(T)))) / int64_t(sizeof(T)));
}

template <typename T, int kPack>
void LaunchNearest(const Resize& r, const void* from, void* to, cudaStream_t stream) {
  int columns = r.out_w * r.channels / kPack;
  NearestKernel<T, kPack><<<RowGrid(r, columns), RowThreads(columns), 0, stream>>>(r, static_cast<const T*>(from),
                                                                                  static_cast<T*>(to));
}

bool Empty(const Resize& r) { return r.planes * r.channels * r.in_h * r.in_w * r.out_h * r.out_w == 0; }

}  // namespace

void ResizeNearest(int64_t size, const Resize& r, const void* from, void* to, cudaStream_t stream) {
  if (Empty(r)) return;
  NVGPU_BYTES(size, "nearest_interp", int pack = PackOf<T>(int64_t(r.out_w) * r.channels, to);
              if (pack >= 8) LaunchNearest<T, 8 * sizeof(T) <= 16 ? 8 : 1>(r, from, to, stream);
              else if (pack >= 4) LaunchNearest<T, 4 * sizeof(T) <= 16 ? 4 : 1>(r, from, to, stream);
              else if (pack >= 2) LaunchNearest<T, 2 * sizeof(T) <= 16 ? 2 : 1>(r, from, to, stream);
              else LaunchNearest<T, 1>(r, from, to, stream));
  Check(cudaGetLastError(), "nearest_interp");
}

void ResizeBilinear(Dtype dtype, const Resize& r, const void* from, void* to, cudaStream_t stream) {
  if (Empty(r)) return;
  int columns = r.out_w * r.channels;
  NVGPU_FLOATS(dtype, "bilinear_interp",
               BilinearKernel<T><<<RowGrid(r, columns), RowThreads(columns), 0, stream>>>(
                   r, static_cast<const T*>(from), static_cast<T*>(to)));
  Check(cudaGetLastError(), "bilinear_interp");
}

}  // namespace nvgpu
