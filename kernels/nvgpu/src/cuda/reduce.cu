#include "reduce.cuh"

namespace nvgpu {
namespace {

// Sums of floats in fp32 (fp64 for fp64 in or out), of integers and bools in int64.
template <typename T, typename A> struct SumOp {
  using In = T;
  using Acc = A;
  __device__ static Acc Init() { return Acc(0); }
  __device__ static Acc Map(In x, int64_t) { return static_cast<Acc>(x); }
  __device__ static Acc Combine(Acc a, Acc b) { return a + b; }
  __device__ static Acc Finish(Acc a) { return a; }
};

template <typename T> struct MeanOp : SumOp<T, compute_t<T>> {
  using Acc = compute_t<T>;
  Acc count;
  explicit MeanOp(int64_t n) : count(static_cast<Acc>(n)) {}
  __device__ Acc Finish(Acc a) const { return a / count; }  // 0 / 0: the mean of nothing is NaN
};

template <typename T, typename A> struct ProdOp : SumOp<T, A> {
  using Acc = A;
  __device__ static Acc Init() { return Acc(1); }
  __device__ static Acc Combine(Acc a, Acc b) { return a * b; }
};

template <template <typename, typename> class Op>
void RunFor(const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream) {
  const bool wide = r.out == Dtype::kFloat64;
  switch (r.in) {
    case Dtype::kBool: return RunSteps(Op<bool, int64_t>(), r, x, out, scratch, stream);
    case Dtype::kInt32: return RunSteps(Op<int32_t, int64_t>(), r, x, out, scratch, stream);
    case Dtype::kInt64: return RunSteps(Op<int64_t, int64_t>(), r, x, out, scratch, stream);
    case Dtype::kFloat64: return RunSteps(Op<double, double>(), r, x, out, scratch, stream);
    case Dtype::kFloat32:
      if (wide) return RunSteps(Op<float, double>(), r, x, out, scratch, stream);
      return RunSteps(Op<float, float>(), r, x, out, scratch, stream);
    case Dtype::kFloat16: return RunSteps(Op<half_t, float>(), r, x, out, scratch, stream);
    case Dtype::kBFloat16:
      return RunSteps(Op<bf16_t, float>(), r, x, out, scratch, stream);
      NVGPU_BAD_DTYPE("sum, prod");
  }
}

}  // namespace

void ReduceSums(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch,
                cudaStream_t stream) {
  if (what == Reduce::kMean) {
    NVGPU_FLOATS(r.in, "mean", RunSteps(MeanOp<T>(r.count()), r, x, out, scratch, stream));
  } else if (what == Reduce::kProd) {
    RunFor<ProdOp>(r, x, out, scratch, stream);
  } else {
    RunFor<SumOp>(r, x, out, scratch, stream);
  }
}

void RunReduce(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream) {
  switch (what) {
    case Reduce::kSum:
    case Reduce::kMean:
    case Reduce::kProd: return ReduceSums(what, r, x, out, scratch, stream);
    case Reduce::kMax:
    case Reduce::kMin: return ReduceExtremes(what, r, x, out, scratch, stream);
    case Reduce::kArgMax:
    case Reduce::kArgMin: return ReduceArgs(what, r, x, out, scratch, stream);
    case Reduce::kAny:
    case Reduce::kAll: return ReduceLogical(what, r, x, out, scratch, stream);
    case Reduce::kLogSumExp: return ReduceLogSumExp(r, x, out, scratch, stream);
  }
}

}  // namespace nvgpu
