// Functions of floats. Nothing here is approximated: fp32 is within a few units of the last place of fp64.
#include "unary.h"
#include "vector.cuh"

namespace nvgpu {
namespace {

// NVGPU_FLOAT_OP(name, expression): C is float or double, x the element, p and q the op's numbers.
#define NVGPU_FLOAT_OP(Name, expression)                        \
  template <typename C> struct Name {                           \
    C p, q;                                                     \
    __device__ C operator()(C x) const { return expression; }   \
  };

template <typename C> __device__ C Log1pExp(C x) { return log1p(exp(x)); }
// x / (1 + exp(-2u)) is x (1 + tanh u) / 2 without its cancellation where u is far below 0.
template <typename C> __device__ C GeluTanhOf(C x) {
  C u = C(0.7978845608028654) * (x + C(0.044715) * x * x * x);  // sqrt(2 / pi)
  return x / (1 + exp(-2 * u));
}

NVGPU_FLOAT_OP(Relu, x < 0 ? C(0) : x)
NVGPU_FLOAT_OP(Relu6, x < 0 ? C(0) : x > 6 ? C(6) : x)
NVGPU_FLOAT_OP(LeakyRelu, x < 0 ? p * x : x)
NVGPU_FLOAT_OP(GeluErf, C(0.5) * x * erfc(-x * C(0.7071067811865476)))  // sqrt(1 / 2)
NVGPU_FLOAT_OP(GeluTanh, GeluTanhOf(x))
NVGPU_FLOAT_OP(Silu, x / (1 + exp(-x)))
NVGPU_FLOAT_OP(Sigmoid, 1 / (1 + exp(-x)))
NVGPU_FLOAT_OP(LogSigmoid, (x < 0 ? x : C(0)) - Log1pExp(-fabs(x)))
NVGPU_FLOAT_OP(Softplus, p * x > q ? x : Log1pExp(p * x) / p)  // p: beta, q: threshold
NVGPU_FLOAT_OP(Mish, x * tanh(x > p ? x : Log1pExp(x)))
NVGPU_FLOAT_OP(HardSwish, x * (x < -3 ? C(0) : x > 3 ? C(6) : x + 3) / 6)
NVGPU_FLOAT_OP(Tanh, tanh(x))
NVGPU_FLOAT_OP(Erf, erf(x))
NVGPU_FLOAT_OP(Exp, exp(x))
NVGPU_FLOAT_OP(Expm1, expm1(x))
NVGPU_FLOAT_OP(Log, log(x))
NVGPU_FLOAT_OP(Log2, log2(x))
NVGPU_FLOAT_OP(Log10, log10(x))
NVGPU_FLOAT_OP(Log1p, log1p(x))
NVGPU_FLOAT_OP(Sqrt, sqrt(x))
NVGPU_FLOAT_OP(Rsqrt, rsqrt(x))
NVGPU_FLOAT_OP(Reciprocal, 1 / x)
NVGPU_FLOAT_OP(Sin, sin(x))
NVGPU_FLOAT_OP(Cos, cos(x))
NVGPU_FLOAT_OP(Tan, tan(x))
NVGPU_FLOAT_OP(Floor, floor(x))
NVGPU_FLOAT_OP(Ceil, ceil(x))
NVGPU_FLOAT_OP(Trunc, trunc(x))
NVGPU_FLOAT_OP(Round, rint(x * p) / p)  // p: a power of ten; halves go to the even neighbour
NVGPU_FLOAT_OP(RoundTens, rint(x / p) * p)
NVGPU_FLOAT_OP(DivScale, x / p)

template <template <typename> typename F>
void Run(Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream, double p, double q) {
  NVGPU_FLOATS(dtype, "elementwise", {
    using C = compute_t<T>;
    Map<T, T>(F<C>{static_cast<C>(p), static_cast<C>(q)}, x, out, n, stream);
  });
}

}  // namespace

void Unary(FloatOp op, Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream, double p, double q) {
#define NVGPU_RUN(Name) \
  case FloatOp::k##Name: return Run<Name>(dtype, x, out, n, stream, p, q);
  switch (op) {
    NVGPU_RUN(Relu)
    NVGPU_RUN(Relu6)
    NVGPU_RUN(LeakyRelu)
    NVGPU_RUN(GeluErf)
    NVGPU_RUN(GeluTanh)
    NVGPU_RUN(Silu)
    NVGPU_RUN(Sigmoid)
    NVGPU_RUN(LogSigmoid)
    NVGPU_RUN(Softplus)
    NVGPU_RUN(Mish)
    NVGPU_RUN(HardSwish)
    NVGPU_RUN(Tanh)
    NVGPU_RUN(Erf)
    NVGPU_RUN(Exp)
    NVGPU_RUN(Expm1)
    NVGPU_RUN(Log)
    NVGPU_RUN(Log2)
    NVGPU_RUN(Log10)
    NVGPU_RUN(Log1p)
    NVGPU_RUN(Sqrt)
    NVGPU_RUN(Rsqrt)
    NVGPU_RUN(Reciprocal)
    NVGPU_RUN(Sin)
    NVGPU_RUN(Cos)
    NVGPU_RUN(Tan)
    NVGPU_RUN(Floor)
    NVGPU_RUN(Ceil)
    NVGPU_RUN(Trunc)
    NVGPU_RUN(Round)
    NVGPU_RUN(RoundTens)
    NVGPU_RUN(DivScale)
  }
}

}  // namespace nvgpu
