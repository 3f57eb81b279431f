#include "norm.h"

#include "rows.cuh"

namespace nvgpu {
namespace {

// RowNorm with its types. A: what is computed in; S: scale and shift.
template <typename T, typename S> struct Args {
  using A = compute_t<T>;
  int64_t rows;
  int64_t columns;
  A epsilon, alpha;
  const T *x, *bias, *residual;
  const S *scale, *shift;
  T *out, *residual_out;
  A *mean, *spread;

  explicit Args(const RowNorm& n)
      : rows(n.rows),
        columns(n.columns),
        epsilon(static_cast<A>(n.epsilon)),
        alpha(static_cast<A>(n.alpha)),
        x(static_cast<const T*>(n.x)),
        bias(static_cast<const T*>(n.bias)),
        residual(static_cast<const T*>(n.residual)),
        scale(static_cast<const S*>(n.scale)),
        shift(static_cast<const S*>(n.shift)),
        out(static_cast<T*>(n.out)),
        residual_out(static_cast<T*>(n.residual_out)),
        mean(static_cast<A*>(n.mean)),
        spread(static_cast<A*>(n.spread)) {}
};

template <typename S, int V> __device__ __forceinline__ Pack<S, V> PackAt(const S* data, int64_t element) {
  return *reinterpret_cast<const Pack<S, V>*>(data + element);
}

// z of V elements of a row.
template <typename T, typename S, int V>
__device__ __forceinline__ void LoadSum(const Args<T, S>& a, int64_t row, int64_t column, compute_t<T> (&z)[V]) {
  const int64_t at = row * a.columns + column;
  const Pack<T, V> x = PackAt<T, V>(a.x, at);
#pragma unroll
  for (int j = 0; j < V; ++j) z[j] = Load(x.at[j]);
  if (a.bias) {
    const Pack<T, V> bias = PackAt<T, V>(a.bias, column);
#pragma unroll
    for (int j = 0; j < V; ++j) z[j] += Load(bias.at[j]);
  }
  if (a.residual) {
    const Pack<T, V> residual = PackAt<T, V>(a.residual, at);
#pragma unroll
    for (int j = 0; j < V; ++j) z[j] += a.alpha * Load(residual.at[j]);
  }
  if (a.residual_out) {
    Pack<T, V> sum;
#pragma unroll
    for (int j = 0; j < V; ++j) sum.at[j] = Store<T>(z[j]);
    *reinterpret_cast<Pack<T, V>*>(a.residual_out + at) = sum;
  }
}

// Stores V elements: normalized ones, times scale, plus shift.
template <typename T, typename S, int V>
__device__ __forceinline__ void StoreAffine(const Args<T, S>& a, int64_t row, int64_t column,
                                            const compute_t<T> (&z)[V], compute_t<T> rstd) {
  using A = compute_t<T>;
  A y[V];
#pragma unroll
  for (int j = 0; j < V; ++j) y[j] = z[j] * rstd;
  if (a.scale) {
    const Pack<S, V> scale = PackAt<S, V>(a.scale, column);
#pragma unroll
    for (int j = 0; j < V; ++j) y[j] *= static_cast<A>(scale.at[j]);
  }
  if (a.shift) {
    const Pack<S, V> shift = PackAt<S, V>(a.shift, column);
#pragma unroll
    for (int j = 0; j < V; ++j) y[j] += static_cast<A>(shift.at[j]);
  }
  Pack<T, V> out;
#pragma unroll
  for (int j = 0; j < V; ++j) out.at[j] = Store<T>(y[j]);
  *reinterpret_cast<Pack<T, V>*>(a.out + row * a.columns + column) = out;
}

template <typename T, typename S>
__device__ __forceinline__ void StoreMoments(const Args<T, S>& a, int64_t row, bool centred, compute_t<T> mean,
                                             compute_t<T> variance) {
  if (a.mean) a.mean[row] = mean;
  if (a.spread) a.spread[row] = centred ? variance : rsqrt(variance + a.epsilon);
}

// The row stays in registers: mean, then the variance about it, as exact as two passes over memory.
template <typename T, typename S, int V, int kPacks, bool kCentred>
__global__ void __launch_bounds__(kRowThreads) RowsKernel(Args<T, S> a) {
  using A = compute_t<T>;
  __shared__ A sums[32], squares[32];
  for (int64_t block = blockIdx.x; block * blockDim.y < a.rows; block += gridDim.x) {
    const int64_t own = block * blockDim.y + threadIdx.y;  // threads past the last row take part, but store nothing
    A z[kPacks][V];
    A sum = 0, square = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t column = int64_t(k * blockDim.x + threadIdx.x) * V;
      const bool inside = own < a.rows && column < a.columns;
      if (inside) LoadSum<T, S, V>(a, own, column, z[k]);
#pragma unroll
      for (int j = 0; j < V; ++j) sum += z[k][j] = inside ? z[k][j] : A(0);
    }
    const A mean = kCentred ? RowReduce(sum, sums, Plus()) / static_cast<A>(a.columns) : A(0);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const bool inside = int64_t(k * blockDim.x + threadIdx.x) * V < a.columns;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        z[k][j] -= mean;
        square += inside ? z[k][j] * z[k][j] : A(0);
      }
    }
    const A variance = RowReduce(square, squares, Plus()) / static_cast<A>(a.columns);
    const A rstd = rsqrt(variance + a.epsilon);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t column = int64_t(k * blockDim.x + threadIdx.x) * V;
      if (own < a.rows && column < a.columns) StoreAffine<T, S, V>(a, own, column, z[k], rstd);
    }
    if (own < a.rows && threadIdx.x == 0) StoreMoments(a, own, kCentred, mean, variance);
    if (!kCentred) __syncthreads();  // one array alone: nobody may write it while others read
  }
}

// Rows too long for registers: a block a row, which is read three times.
template <typename T, typename S, bool kCentred> __global__ void __launch_bounds__(1024) LongRowsKernel(Args<T, S> a) {
  using A = compute_t<T>;
  __shared__ A sums[32], squares[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    A sum = 0, square = 0, z[1];
    for (int64_t i = threadIdx.x; i < a.columns; i += blockDim.x) {
      LoadSum<T, S, 1>(a, row, i, z);
      sum += z[0];
    }
    const A mean = kCentred ? RowReduce(sum, sums, Plus()) / static_cast<A>(a.columns) : A(0);
    for (int64_t i = threadIdx.x; i < a.columns; i += blockDim.x) {
      LoadSum<T, S, 1>(a, row, i, z);
      square += (z[0] - mean) * (z[0] - mean);
    }
    const A variance = RowReduce(square, squares, Plus()) / static_cast<A>(a.columns);
    const A rstd = rsqrt(variance + a.epsilon);
    for (int64_t i = threadIdx.x; i < a.columns; i += blockDim.x) {
      LoadSum<T, S, 1>(a, row, i, z);
      z[0] -= mean;
      StoreAffine<T, S, 1>(a, row, i, z, rstd);
    }
    if (threadIdx.x == 0) StoreMoments(a, row, kCentred, mean, variance);
    if (!kCentred) __syncthreads();
  }
}

bool AllAligned(const RowNorm& n) {
  for (const void* p : {n.x, n.bias, n.residual, n.scale, n.shift, static_cast<const void*>(n.out),
                        static_cast<const void*>(n.residual_out)})
    if (!Aligned(p)) return false;  // null is aligned
  return true;
}

template <typename T, typename S, bool kCentred> void Run(const RowNorm& n, cudaStream_t stream) {
  constexpr int V = kPackOf<T>;
  const Args<T, S> args(n);
  const bool packed = n.columns % V == 0 && AllAligned(n);
  const RowLayout layout = RowLayoutOf(packed ? n.columns / V : n.columns, 8);
  if (layout.width == 0) {
    LongRowsKernel<T, S, kCentred><<<static_cast<int>(std::min<int64_t>(n.rows, 1 << 30)), 1024, 0, stream>>>(args);
  } else if (packed) {
    NVGPU_ROW_PACKS(layout.packs,
                    RowsKernel<T, S, V, kPacks, kCentred><<<layout.grid(n.rows), layout.threads(), 0, stream>>>(args));
  } else {
    RowsKernel<T, S, 1, 8, kCentred><<<layout.grid(n.rows), layout.threads(), 0, stream>>>(args);
  }
}

template <typename T, typename S> void RunEither(const RowNorm& n, cudaStream_t stream) {
  if (n.centred) Run<T, S, true>(n, stream);
  else Run<T, S, false>(n, stream);
}

}  // namespace

void RunRowNorm(const RowNorm& n, cudaStream_t stream) {
  if (n.rows == 0 || n.columns == 0) return;
  if (n.affine == n.dtype) {
    NVGPU_FLOATS(n.dtype, "layer_norm, rms_norm", RunEither<T, T>(n, stream));
  } else if (n.affine == Dtype::kFloat32 && n.dtype == Dtype::kFloat16) {
    RunEither<half_t, float>(n, stream);
  } else if (n.affine == Dtype::kFloat32 && n.dtype == Dtype::kBFloat16) {
    RunEither<bf16_t, float>(n, stream);
  } else {
    throw std::runtime_error("nvgpu: layer_norm, rms_norm: scale and bias must have the input's dtype, or be float32");
  }
  Check(cudaGetLastError(), "layer_norm, rms_norm");
}

}  // namespace nvgpu
