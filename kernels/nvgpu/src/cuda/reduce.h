#pragma once
#include <functional>

#include "types.h"

namespace nvgpu {

// Gives so many bytes of device memory that last until the op's own work on the stream is done.
using Scratch = std::function<void*(int64_t bytes)>;

// Contiguous x of type `in` and shape `dims`, reduced over the axes marked; results are of type `out`, row-major.
struct Reduction {
  int rank = 0;
  int64_t dims[kMaxRank] = {};
  bool reduced[kMaxRank] = {};
  Dtype in = Dtype::kFloat32;
  Dtype out = Dtype::kFloat32;

  // How many elements make one result.
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= reduced[i] ? dims[i] : 1;
    return n;
  }
};

enum class Reduce { kSum, kMean, kProd, kMax, kMin, kAny, kAll, kLogSumExp, kArgMax, kArgMin };

// kArgMax and kArgMin: over one axis, or over all. Their results, and sums of integers, are computed in int64.
void RunReduce(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream);

// (sum |x|^p)^(1/p), or without the root; p = 0 counts what is not zero, p = +-infinity is the largest or smallest |x|.
void RunNorm(float p, bool root, const Reduction& r, const void* x, void* out, const Scratch& scratch,
             cudaStream_t stream);

// The parts of RunReduce, by file.
void ReduceSums(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream);
void ReduceExtremes(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch,
                    cudaStream_t stream);
void ReduceArgs(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream);
void ReduceLogical(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch,
                   cudaStream_t stream);
void ReduceLogSumExp(const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream);

}  // namespace nvgpu
