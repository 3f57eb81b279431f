#include "softmax.h"

#include "limits.cuh"
#include "rows.cuh"
#include "warp.cuh"

namespace nvgpu {
namespace {

__device__ __forceinline__ double Exp(double x, double) { return exp(x); }
__device__ __forceinline__ float Exp(float x, float) { return expf(x); }
// The hardware's exp2: exact to fp32's last bits, far below what a half holds.
template <typename T> __device__ __forceinline__ float Exp(float x, T) { return __expf(x); }

// The packs of one row, as aligned loads see them: rows of any length start anywhere within a pack, and what belongs to
// the neighbours is skipped. `base` and so the packs are aligned, or V is 1.
template <typename T, int V, int kPacks> struct RowPacks {
  using A = compute_t<T>;
  int64_t first;  // the first pack's number in the whole tensor
  int skip;       // elements of it that are the row before
  int columns;

  __device__ RowPacks(int64_t row, int columns)
      : first(row * columns / V), skip(static_cast<int>(row * columns % V)), columns(columns) {}
  __device__ __forceinline__ int ColumnOf(int k) const { return (k * blockDim.x + threadIdx.x) * V - skip; }

  __device__ __forceinline__ void LoadInto(const T* x, A (&values)[kPacks][V]) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int column = ColumnOf(k);
      const T* at = x + first * V + (column + skip);
      Pack<T, V> pack;
      const bool whole = column >= 0 && column + V <= columns;
      if (whole) pack = *reinterpret_cast<const Pack<T, V>*>(at);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (!whole && column + j >= 0 && column + j < columns) pack.at[j] = at[j];
        values[k][j] = column + j >= 0 && column + j < columns ? Load(pack.at[j]) : kLowest<A>;
      }
    }
  }

  __device__ __forceinline__ void StoreFrom(T* out, const A (&values)[kPacks][V]) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int column = ColumnOf(k);
      T* at = out + first * V + (column + skip);
      Pack<T, V> pack;
#pragma unroll
      for (int j = 0; j < V; ++j) pack.at[j] = Store<T>(values[k][j]);
      if (column >= 0 && column + V <= columns) {
        *reinterpret_cast<Pack<T, V>*>(at) = pack;
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (column + j >= 0 && column + j < columns) at[j] = pack.at[j];
      }
    }
  }
};

template <typename T, int V, int kPacks, bool kLog>
__global__ void __launch_bounds__(kRowThreads) RowsKernel(const T* x, T* out, int64_t rows, int columns) {
  using A = compute_t<T>;
  __shared__ A tops[32], sums[32];
  for (int64_t block = blockIdx.x; block * blockDim.y < rows; block += gridDim.x) {
    const int64_t own = block * blockDim.y + threadIdx.y;  // threads past the last row repeat it, and do not store
    const RowPacks<T, V, kPacks> row(own < rows ? own : rows - 1, columns);
    A values[kPacks][V];
    row.LoadInto(x, values);
    A top = kLowest<A>, sum = 0;
    for (auto& pack : values)
      for (A value : pack) top = Larger()(top, value);
    top = RowReduce(top, tops, Larger());
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int column = row.ColumnOf(k) + j;
        const A power = Exp(values[k][j] - top, T());
        sum += column >= 0 && column < columns ? power : A(0);
        values[k][j] = kLog ? values[k][j] - top : power;
      }
    }
    sum = RowReduce(sum, sums, Plus());
    const A scale = kLog ? log(sum) : A(1) / sum;
    for (auto& pack : values)
      for (A& value : pack) value = kLog ? value - scale : value * scale;
    if (own < rows) row.StoreFrom(out, values);
  }
}

// Rows too long for registers: three passes, a block a row.
template <typename T, bool kLog>
__global__ void __launch_bounds__(1024) LongRowsKernel(const T* x, T* out, int64_t rows, int64_t columns) {
  using A = compute_t<T>;
  __shared__ A tops[32], sums[32];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = x + row * columns;
    A top = kLowest<A>, sum = 0;
    for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) top = Larger()(top, Load(from[i]));
    top = RowReduce(top, tops, Larger());
    for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) sum += Exp(Load(from[i]) - top, T());
    sum = RowReduce(sum, sums, Plus());
    const A scale = kLog ? log(sum) : A(1) / sum;
    for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
      const A value = Load(from[i]) - top;
      out[row * columns + i] = Store<T>(kLog ? value - scale : Exp(value, T()) * scale);
    }
  }
}

// Over an axis that is not the last one: a thread a column, neighbours are coalesced.
template <typename T, bool kLog>
__global__ void ColumnsKernel(const T* x, T* out, int64_t outer, int64_t length, int64_t inner) {
  using A = compute_t<T>;
  for (int64_t c = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; c < outer * inner;
       c += int64_t(gridDim.x) * blockDim.x) {
    const int64_t base = c / inner * length * inner + c % inner;
    A top = kLowest<A>, sum = 0;
    for (int64_t i = 0; i < length; ++i) top = Larger()(top, Load(x[base + i * inner]));
    for (int64_t i = 0; i < length; ++i) sum += Exp(Load(x[base + i * inner]) - top, T());
    const A scale = kLog ? log(sum) : A(1) / sum;
    for (int64_t i = 0; i < length; ++i) {
      const A value = Load(x[base + i * inner]) - top;
      out[base + i * inner] = Store<T>(kLog ? value - scale : Exp(value, T()) * scale);
    }
  }
}

template <typename T, int V, bool kLog>
bool RunRows(const T* x, T* out, int64_t rows, int64_t columns, cudaStream_t stream) {
  const int64_t packs = (columns + V - 1) / V + (columns % V == 0 ? 0 : 1);  // a row that starts within a pack
  const RowLayout layout = RowLayoutOf(packs, 4);
  if (layout.width == 0) return false;
  NVGPU_ROW_PACKS(layout.packs, RowsKernel<T, V, kPacks, kLog>
                  <<<layout.grid(rows), layout.threads(), 0, stream>>>(x, out, rows, static_cast<int>(columns)));
  return true;
}

template <typename T, bool kLog>
void Run(const T* x, T* out, int64_t outer, int64_t length, int64_t inner, cudaStream_t stream) {
  if (inner > 1) {
    ColumnsKernel<T, kLog><<<Blocks(outer * inner), kThreads, 0, stream>>>(x, out, outer, length, inner);
    return;
  }
  const bool done = Aligned(x) && Aligned(out) ? RunRows<T, kPackOf<T>, kLog>(x, out, outer, length, stream)
                                               : RunRows<T, 1, kLog>(x, out, outer, length, stream);
  if (!done)
    LongRowsKernel<T, kLog>
        <<<static_cast<int>(std::min<int64_t>(outer, 1 << 30)), 1024, 0, stream>>>(x, out, outer, length);
}

}  // namespace

void Softmax(Dtype dtype, bool log, const void* x, void* out, int64_t outer, int64_t length, int64_t inner,
             cudaStream_t stream) {
  if (outer * length * inner == 0) return;
  if (log) {
    NVGPU_FLOATS(dtype, "log_softmax",
                 Run<T, true>(static_cast<const T*>(x), static_cast<T*>(out), outer, length, inner, stream));
  } else {
    NVGPU_FLOATS(dtype, "softmax",
                 Run<T, false>(static_cast<const T*>(x), static_cast<T*>(out), outer, length, inner, stream));
  }
  Check(cudaGetLastError(), "softmax");
}

}  // namespace nvgpu
