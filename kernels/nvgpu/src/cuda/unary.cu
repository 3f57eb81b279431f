#include "unary.h"

#include <type_traits>

#include "vector.cuh"

namespace nvgpu {
namespace {

template <typename C> constexpr bool kWhole = std::is_integral_v<C>;
template <typename C> C As(const Number& number) {
  if constexpr (kWhole<C>) return static_cast<C>(number.whole);
  return static_cast<C>(number.real);
}

#define NVGPU_NUMBER_OP(Name, expression)                      \
  template <typename C> struct Name {                          \
    C p, q;                                                    \
    __device__ C operator()(C x) const { return expression; }  \
  };

// The powers that models use are products, as exact as these; whole numbers go through fp64, as Paddle's do.
template <typename C> __device__ C PowOf(C x, C p) {
  if (p == C(2)) return x * x;
  if (p == C(3)) return x * x * x;
  if constexpr (kWhole<C>) return static_cast<C>(llrint(pow(static_cast<double>(x), static_cast<double>(p))));
  return pow(x, p);
}

NVGPU_NUMBER_OP(Abs, x < 0 ? -x : x == 0 ? C(0) : x)  // |-0| is 0
NVGPU_NUMBER_OP(Sign, x > 0 ? C(1) : x < 0 ? C(-1) : x)
NVGPU_NUMBER_OP(Square, x * x)
NVGPU_NUMBER_OP(Pow, PowOf(x, p))
NVGPU_NUMBER_OP(ScaleLast, p * x + q)
NVGPU_NUMBER_OP(ScaleSum, p * (x + q))
NVGPU_NUMBER_OP(Clip, x < p ? p : x > q ? q : x)

template <template <typename> typename F>
void Run(Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream, Number p, Number q) {
  NVGPU_NUMBERS(dtype, "elementwise", {
    using C = compute_t<T>;
    Map<T, T>(F<C>{As<C>(p), As<C>(q)}, x, out, n, stream);
  });
}

struct IsNan {
  template <typename C> __device__ bool operator()(C x) const { return x != x; }
};
struct IsInf {
  template <typename C> __device__ bool operator()(C x) const {
    if constexpr (kWhole<C>) return false;
    else return isinf(x);
  }
};
struct IsFinite {
  template <typename C> __device__ bool operator()(C x) const {
    if constexpr (kWhole<C>) return true;
    else return isfinite(x);
  }
};
struct IsZero {
  template <typename C> __device__ bool operator()(C x) const { return x == C(0); }
};
struct Not {
  template <typename C> __device__ C operator()(C x) const { return static_cast<C>(~x); }
};

}  // namespace

void Unary(NumberOp op, Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream, Number p, Number q) {
  switch (op) {
    case NumberOp::kAbs: return Run<Abs>(dtype, x, out, n, stream, p, q);
    case NumberOp::kSign: return Run<Sign>(dtype, x, out, n, stream, p, q);
    case NumberOp::kSquare: return Run<Square>(dtype, x, out, n, stream, p, q);
    case NumberOp::kPow: return Run<Pow>(dtype, x, out, n, stream, p, q);
    case NumberOp::kScaleLast: return Run<ScaleLast>(dtype, x, out, n, stream, p, q);
    case NumberOp::kScaleSum: return Run<ScaleSum>(dtype, x, out, n, stream, p, q);
    case NumberOp::kClip: return Run<Clip>(dtype, x, out, n, stream, p, q);
  }
}

void Unary(TestOp op, Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream) {
  auto run = [&](auto f) { NVGPU_ALL(dtype, "elementwise test", (Map<T, bool>(f, x, out, n, stream))); };
  switch (op) {
    case TestOp::kIsNan: return run(IsNan());
    case TestOp::kIsInf: return run(IsInf());
    case TestOp::kIsFinite: return run(IsFinite());
    case TestOp::kIsZero: return run(IsZero());
  }
}

void BitwiseNot(Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream) {
  switch (dtype) {
    case Dtype::kBool: return Map<bool, bool>(IsZero(), x, out, n, stream);
    case Dtype::kUInt8:
    case Dtype::kInt8: return Map<uint8_t, uint8_t>(Not(), x, out, n, stream);
    case Dtype::kInt16: return Map<uint16_t, uint16_t>(Not(), x, out, n, stream);
    case Dtype::kInt32: return Map<uint32_t, uint32_t>(Not(), x, out, n, stream);
    case Dtype::kInt64: return Map<uint64_t, uint64_t>(Not(), x, out, n, stream);
    default: throw std::runtime_error("nvgpu: bitwise_not: dtype not supported");
  }
}

}  // namespace nvgpu
