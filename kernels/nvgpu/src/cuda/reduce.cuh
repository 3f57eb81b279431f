// Any reduction of a contiguous tensor, as a chain of steps over [outer, length, inner], each of them coalesced.
//
// An Op has types In and Acc, and
//   Init()  the neutral Acc            Map(In x, int64_t i)  the Acc of element i of the reduced axis
//   Combine(Acc, Acc)                  Finish(Acc)           the result, converted to the output's dtype
// Steps after the first combine Accs. Long reductions with few results are split over many blocks: one step more.
// Nothing is atomic, so the same input gives the same bits.
#pragma once
#include <vector>

#include "pack.cuh"
#include "reduce.h"
#include "warp.cuh"

namespace nvgpu {

struct Step {
  int64_t outer, length, inner;
};
// `count` pieces of `chunk` along length (the last one may be shorter).
struct Split {
  int64_t count, chunk;
};

// Where a step's results go: to the next step, or finished to the output.
template <typename Op> struct Target {
  typename Op::Acc* partial;
  void* out;
  Dtype type;
};

// What the first step reads, and what later ones read.
template <typename Op> struct Mapped {
  const typename Op::In* data;
  __device__ typename Op::Acc operator()(const Op& op, int64_t at, int64_t i) const { return op.Map(data[at], i); }
};
template <typename Op> struct Partial {
  const typename Op::Acc* data;
  __device__ typename Op::Acc operator()(const Op&, int64_t at, int64_t) const { return data[at]; }
};

template <typename V> __device__ void StoreAs(void* out, Dtype type, int64_t i, V value) {
  switch (type) {
    case Dtype::kBool: static_cast<bool*>(out)[i] = value != V(0); break;
    case Dtype::kInt32: static_cast<int32_t*>(out)[i] = static_cast<int32_t>(value); break;
    case Dtype::kInt64: static_cast<int64_t*>(out)[i] = static_cast<int64_t>(value); break;
    case Dtype::kFloat16: static_cast<half_t*>(out)[i] = static_cast<half_t>(static_cast<float>(value)); break;
    case Dtype::kBFloat16: static_cast<bf16_t*>(out)[i] = static_cast<bf16_t>(static_cast<float>(value)); break;
    case Dtype::kFloat32: static_cast<float*>(out)[i] = static_cast<float>(value); break;
    default: static_cast<double*>(out)[i] = static_cast<double>(value); break;
  }
}

template <typename Op>
__device__ void Write(const Op& op, const Target<Op>& to, int64_t i, const typename Op::Acc& acc) {
  if (to.partial) to.partial[i] = acc;
  else StoreAs(to.out, to.type, i, op.Finish(acc));
}

template <typename Op> struct CombineBy {
  const Op& op;
  __device__ typename Op::Acc operator()(const typename Op::Acc& a, const typename Op::Acc& b) const {
    return op.Combine(a, b);
  }
};

// What thread `lane` of `lanes` has of row[begin, end); begin is a multiple of 16. `packed`: the row is aligned.
template <typename Op>
__device__ typename Op::Acc Gather(const Op& op, const typename Op::In* row, int64_t begin, int64_t end, int lane,
                                   int lanes, bool packed) {
  constexpr int V = kPackOf<typename Op::In>;
  using Packed = Pack<typename Op::In, V>;
  typename Op::Acc acc = op.Init();
  if (packed) {
    const Packed* packs = reinterpret_cast<const Packed*>(row);
#pragma unroll 4
    for (int64_t p = begin / V + lane; p < end / V; p += lanes) {
      Packed pack = packs[p];
#pragma unroll
      for (int j = 0; j < V; ++j) acc = op.Combine(acc, op.Map(pack.at[j], p * V + j));
    }
    begin = end / V * V;
  }
  for (int64_t i = begin + lane; i < end; i += lanes) acc = op.Combine(acc, op.Map(row[i], i));
  return acc;
}

// Rows of up to a few hundred elements: `width` lanes a row.
template <typename Op>
__global__ void ShortRowsKernel(Op op, const typename Op::In* x, Target<Op> to, int64_t rows, int64_t length, int width,
                                bool packed) {
  const int lane = threadIdx.x % width, per_block = kThreads / width;
  for (int64_t first = blockIdx.x * int64_t(per_block); first < rows; first += int64_t(gridDim.x) * per_block) {
    const int64_t row = first + threadIdx.x / width;  // all lanes take part in the shuffles, whatever their row
    typename Op::Acc acc = row < rows ? Gather(op, x + row * length, 0, length, lane, width, packed) : op.Init();
    acc = WarpReduce(acc, width, CombineBy<Op>{op});
    if (lane == 0 && row < rows) Write(op, to, row, acc);
  }
}

// A block for each piece of each row.
template <typename Op>
__global__ void RowsKernel(Op op, const typename Op::In* x, Target<Op> to, int64_t rows, int64_t length, Split split,
                           bool packed) {
  for (int64_t b = blockIdx.x; b < rows * split.count; b += gridDim.x) {
    const int64_t row = b / split.count, begin = b % split.count * split.chunk;
    const int64_t end = min(begin + split.chunk, length);
    typename Op::Acc acc = Gather(op, x + row * length, begin, end, threadIdx.x, blockDim.x, packed);
    acc = BlockReduce(acc, op.Init(), CombineBy<Op>{op});
    if (threadIdx.x == 0) Write(op, to, b, acc);
  }
}

// A block for each piece of blockDim.x columns; blockDim.y threads share a column.
template <typename Op, typename Source>
__global__ void ColumnsKernel(Op op, Source from, Target<Op> to, Step step, Split split) {
  using Acc = typename Op::Acc;
  __shared__ alignas(16) unsigned char storage[kThreads * sizeof(Acc)];
  Acc* shared = reinterpret_cast<Acc*>(storage);
  const int64_t tiles = (step.inner + blockDim.x - 1) / blockDim.x;
  const int own = threadIdx.y * blockDim.x + threadIdx.x;
  for (int64_t b = blockIdx.x; b < step.outer * split.count * tiles; b += gridDim.x) {
    const int64_t column = b % tiles * blockDim.x + threadIdx.x, piece = b / tiles;  // piece: outer * count + number
    const int64_t begin = piece % split.count * split.chunk, end = min(begin + split.chunk, step.length);
    const int64_t base = piece / split.count * step.length * step.inner + column;
    Acc acc = op.Init();
    if (column < step.inner) {
#pragma unroll 4
      for (int64_t i = begin + threadIdx.y; i < end; i += blockDim.y)
        acc = op.Combine(acc, from(op, base + i * step.inner, i));
    }
    shared[own] = acc;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) shared[own] = op.Combine(shared[own], shared[own + half * blockDim.x]);
    }
    if (threadIdx.y == 0 && column < step.inner) Write(op, to, piece * step.inner + column, shared[own]);
    __syncthreads();
  }
}

// A thread for each result: short columns.
template <typename Op> __global__ void ShortColumnsKernel(Op op, Mapped<Op> from, Target<Op> to, Step step) {
  const int64_t n = step.outer * step.inner;
  for (int64_t r = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; r < n; r += int64_t(gridDim.x) * blockDim.x) {
    const int64_t base = r / step.inner * step.length * step.inner + r % step.inner;
    typename Op::Acc acc = op.Init();
    for (int64_t i = 0; i < step.length; ++i) acc = op.Combine(acc, from(op, base + i * step.inner, i));
    Write(op, to, r, acc);
  }
}

// Enough blocks to fill the card, where the results alone are too few; pieces of at least 4096 elements or 64 rows.
inline Split SplitOf(const Step& step) {
  constexpr int64_t kBlocks = 132 * 8;
  const int64_t blocks = step.outer * ((step.inner + 31) / 32), least = step.inner == 1 ? 4096 : 64;
  if (blocks == 0 || blocks * 2 > kBlocks || step.length < 2 * least) return {1, step.length};
  int64_t count = std::min((kBlocks + blocks - 1) / blocks, step.length / least);
  int64_t chunk = ((step.length + count - 1) / count + 15) / 16 * 16;
  return {(step.length + chunk - 1) / chunk, chunk};
}

// Neighbouring axes of one kind are one axis; then a step for each reduced axis, the last one first.
inline std::vector<Step> StepsOf(const Reduction& r) {
  std::vector<int64_t> sizes;
  std::vector<bool> reduced;
  for (int i = 0; i < r.rank; ++i) {
    if (r.dims[i] == 1) continue;
    if (!sizes.empty() && reduced.back() == r.reduced[i]) {
      sizes.back() *= r.dims[i];
    } else {
      sizes.push_back(r.dims[i]);
      reduced.push_back(r.reduced[i]);
    }
  }
  std::vector<Step> steps;
  int64_t inner = 1;
  for (int i = static_cast<int>(sizes.size()) - 1; i >= 0; --i) {
    int64_t outer = 1;
    for (int j = 0; j < i; ++j) outer *= sizes[j];
    if (reduced[i]) steps.push_back({outer, sizes[i], inner});
    else inner *= sizes[i];
  }
  if (steps.empty()) steps.push_back({inner, 1, 1});
  return steps;
}

inline int PowerOfTwoUpTo(int64_t n, int most) {
  int power = 1;
  while (power * 2 <= n && power * 2 <= most) power *= 2;
  return power;
}

inline int GridOf(int64_t blocks) { return static_cast<int>(std::min<int64_t>(blocks, 1 << 30)); }

template <typename Op, typename Source>
void LaunchColumns(const Op& op, Source from, const Target<Op>& to, const Step& step, const Split& split,
                   cudaStream_t stream) {
  const int across = PowerOfTwoUpTo(step.inner, 32), along = kThreads / across;
  const int64_t tiles = (step.inner + across - 1) / across;
  const dim3 threads(across, along);
  ColumnsKernel<Op, Source>
      <<<GridOf(step.outer * split.count * tiles), threads, 0, stream>>>(op, from, to, step, split);
}

template <typename Op>
void LaunchRows(const Op& op, const typename Op::In* x, const Target<Op>& to, const Step& step, const Split& split,
                cudaStream_t stream) {
  constexpr int V = kPackOf<typename Op::In>;
  const bool packed = Aligned(x) && (step.outer == 1 || step.length % V == 0);
  if (split.count > 1 || step.length > 1024) {
    RowsKernel<Op>
        <<<GridOf(step.outer * split.count), kThreads, 0, stream>>>(op, x, to, step.outer, step.length, split, packed);
    return;
  }
  const int64_t loads = packed ? step.length / V : step.length;
  const int width = PowerOfTwoUpTo(std::max<int64_t>(2 * loads - 1, 1), 32);  // up to the next power of two
  const int64_t blocks = (step.outer * width + kThreads - 1) / kThreads;
  ShortRowsKernel<Op><<<GridOf(blocks), kThreads, 0, stream>>>(op, x, to, step.outer, step.length, width, packed);
}

template <typename Op>
void LaunchFirst(const Op& op, const void* data, const Target<Op>& to, const Step& step, const Split& split,
                 cudaStream_t stream) {
  const auto* x = static_cast<const typename Op::In*>(data);
  if (step.inner == 1) {
    LaunchRows(op, x, to, step, split, stream);
  } else if (step.length <= 32) {
    ShortColumnsKernel<Op><<<Blocks(step.outer * step.inner), kThreads, 0, stream>>>(op, {x}, to, step);
  } else {
    LaunchColumns(op, Mapped<Op>{x}, to, step, split, stream);
  }
}

template <typename Op>
void RunSteps(const Op& op, const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream) {
  using Acc = typename Op::Acc;
  std::vector<Step> steps = StepsOf(r);
  Acc* partial = nullptr;
  for (size_t k = 0; k < steps.size(); ++k) {
    const Step step = steps[k];
    const Split split = SplitOf(step);
    if (split.count > 1) steps.insert(steps.begin() + k + 1, {step.outer, split.count, step.inner});
    const int64_t results = step.outer * split.count * step.inner;
    Target<Op> to{nullptr, out, r.out};
    if (k + 1 < steps.size()) to.partial = static_cast<Acc*>(scratch(std::max<int64_t>(results, 1) * sizeof(Acc)));
    if (results > 0 && k == 0) LaunchFirst(op, x, to, step, split, stream);
    if (results > 0 && k > 0) LaunchColumns(op, Partial<Op>{partial}, to, step, split, stream);
    partial = to.partial;
  }
  Check(cudaGetLastError(), "reduction");
}

}  // namespace nvgpu
