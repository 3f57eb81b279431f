#include "limits.cuh"
#include "reduce.cuh"

namespace nvgpu {
namespace {

// max or min; a NaN wins.
template <typename T, bool kMax> struct ExtremeOp {
  using In = T;
  using Acc = compute_t<T>;
  __device__ static Acc Init() { return kMax ? kLowest<Acc> : kHighest<Acc>; }
  __device__ static Acc Map(In x, int64_t) { return Load(x); }
  __device__ static Acc Combine(Acc a, Acc b) { return (kMax ? a > b : a < b) || a != a ? a : b; }
  __device__ static Acc Finish(Acc a) { return a; }
};

// The first place of the largest or smallest value; a NaN wins.
template <typename T, bool kMax> struct ArgOp {
  using In = T;
  struct Acc {
    compute_t<T> value;
    int64_t index;
  };
  __device__ static Acc Init() {
    using A = compute_t<T>;
    return {kMax ? kLowest<A> : kHighest<A>, std::numeric_limits<int64_t>::max()};
  }
  __device__ static Acc Map(In x, int64_t i) { return {Load(x), i}; }
  __device__ static Acc Combine(const Acc& a, const Acc& b) { return Better(a, b) ? a : b; }
  __device__ static int64_t Finish(const Acc& a) { return a.index; }

 private:
  __device__ static bool Better(const Acc& a, const Acc& b) {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan || b_nan) return a_nan == b_nan ? a.index < b.index : a_nan;
    if (a.value == b.value) return a.index < b.index;
    return kMax ? a.value > b.value : a.value < b.value;
  }
};

}  // namespace

void ReduceExtremes(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch,
                    cudaStream_t stream) {
  if (what == Reduce::kMax) {
    NVGPU_NUMBERS(r.in, "max", RunSteps(ExtremeOp<T, true>(), r, x, out, scratch, stream));
  } else {
    NVGPU_NUMBERS(r.in, "min", RunSteps(ExtremeOp<T, false>(), r, x, out, scratch, stream));
  }
}

void ReduceArgs(Reduce what, const Reduction& r, const void* x, void* out, const Scratch& scratch,
                cudaStream_t stream) {
  if (what == Reduce::kArgMax) {
    NVGPU_NUMBERS(r.in, "argmax", RunSteps(ArgOp<T, true>(), r, x, out, scratch, stream));
  } else {
    NVGPU_NUMBERS(r.in, "argmin", RunSteps(ArgOp<T, false>(), r, x, out, scratch, stream));
  }
}

}  // namespace nvgpu
