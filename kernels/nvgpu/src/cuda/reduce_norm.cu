#include "limits.cuh"
#include "reduce.cuh"

namespace nvgpu {
namespace {

template <typename T, bool kAny> struct LogicalOp {
  using In = T;
  using Acc = int;
  __device__ static Acc Init() { return kAny ? 0 : 1; }
  __device__ static Acc Map(In x, int64_t) { return static_cast<compute_t<T>>(x) != compute_t<T>(0); }
  __device__ static Acc Combine(Acc a, Acc b) { return kAny ? a | b : a & b; }
  __device__ static Acc Finish(Acc a) { return a; }
};

// log(sum(exp(x))), as the maximum and the sum relative to it.
template <typename T> struct LogSumExpOp {
  using In = T;
  using A = compute_t<T>;
  struct Acc {
    A top, sum;
  };
  __device__ static Acc Init() { return {kLowest<A>, A(0)}; }
  __device__ static Acc Map(In x, int64_t) { return {Load(x), A(1)}; }
  __device__ static Acc Combine(const Acc& a, const Acc& b) {
    const A top = a.top > b.top || a.top != a.top ? a.top : b.top;
    return {top, Scaled(a, top) + Scaled(b, top)};
  }
  __device__ static A Finish(const Acc& a) { return a.top + log(a.sum); }

 private:
  // Equal tops first: they may be infinite, and then their difference is no number.
  __device__ static A Scaled(const Acc& a, A top) { return a.top == top ? a.sum : a.sum * exp(a.top - top); }
};

enum class Power { kCount, kAbs, kSquare, kAny };

template <typename T> struct NormOp {
  using In = T;
  using Acc = compute_t<T>;
  Power power;
  Acc p;
  bool root;
  __device__ static Acc Init() { return Acc(0); }
  __device__ Acc Map(In element, int64_t) const {
    const Acc x = Load(element);
    switch (power) {
      case Power::kCount: return x != Acc(0) ? Acc(1) : Acc(0);
      case Power::kAbs: return fabs(x);
      case Power::kSquare: return x * x;
      default: return pow(static_cast<Acc>(fabs(x)), p);
    }
  }
  __device__ static Acc Combine(Acc a, Acc b) { return a + b; }
  __device__ Acc Finish(Acc a) const {
    if (!root || power == Power::kCount || power == Power::kAbs) return a;
    return power == Power::kSquare ? static_cast<Acc>(sqrt(a)) : static_cast<Acc>(pow(a, Acc(1) / p));
  }
};

template <typename T, bool kMax> struct AbsExtremeOp {
  using In = T;
  using Acc = compute_t<T>;
  __device__ static Acc Init() { return kMax ? Acc(0) : kHighest<Acc>; }
  __device__ static Acc Map(In x, int64_t) { return fabs(Load(x)); }
  __device__ static Acc Combine(Acc a, Acc b) { return (kMax ? a > b : a < b) || a != a ? a : b; }
  __device__ static Acc Finish(Acc a) { return a; }
};

Power PowerOf(float p) {
  if (p == 0) return Power::kCount;
  if (p == 1) return Power::kAbs;
  return p == 2 ? Power::kSquare : Power::kAny;
}

}  // namespace

void ReduceLogical(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch,
                   cudaStream_t stream) {
  if (r.in == Dtype::kBool) {
    if (what == Reduce::kAny) return RunSteps(LogicalOp<bool, true>(), r, x, out, scratch, stream);
    return RunSteps(LogicalOp<bool, false>(), r, x, out, scratch, stream);
  }
  if (what == Reduce::kAny) {
    NVGPU_NUMBERS(r.in, "any", RunSteps(LogicalOp<T, true>(), r, x, out, scratch, stream));
  } else {
    NVGPU_NUMBERS(r.in, "all", RunSteps(LogicalOp<T, false>(), r, x, out, scratch, stream));
  }
}

void ReduceLogSumExp(const Reduction& r, const void* x, void* out, const Scratch& scratch, cudaStream_t stream) {
  NVGPU_FLOATS(r.in, "logsumexp", RunSteps(LogSumExpOp<T>(), r, x, out, scratch, stream));
}

void RunNorm(float p, bool root, const Reduction& r, const void* x, void* out, const Scratch& scratch,
             cudaStream_t stream) {
  if (std::isinf(p) && p > 0) {
    NVGPU_FLOATS(r.in, "p_norm", RunSteps(AbsExtremeOp<T, true>(), r, x, out, scratch, stream));
  } else if (std::isinf(p)) {
    NVGPU_FLOATS(r.in, "p_norm", RunSteps(AbsExtremeOp<T, false>(), r, x, out, scratch, stream));
  } else {
    NVGPU_FLOATS(r.in, "p_norm", RunSteps(NormOp<T>{PowerOf(p), compute_t<T>(p), root}, r, x, out, scratch, stream));
  }
}

}  // namespace nvgpu
