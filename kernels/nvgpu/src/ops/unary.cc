// Ops of one tensor.
#include "../cuda/unary.h"

#include "glue.h"
#include "paddle/phi/common/scalar.h"

namespace nvgpu {

using phi::Scalar;

namespace {

template <typename T> inline Number NumberOf(const Scalar& scalar) {
  if constexpr (std::is_integral_v<T>) return {0, scalar.to<int64_t>()};
  return {scalar.to<double>(), 0};
}

template <typename T>
void RunFloat(const CustomContext& ctx, FloatOp op, const DenseTensor& x, DenseTensor* out, double p = 0,
              double q = 0) {
  ctx.template Alloc<T>(out);
  Unary(op, DtypeFor<T>(), x.data(), out->data(), x.numel(), StreamOf(ctx), p, q);
}

// The result of exp, log and their kind is fp32 where x holds integers.
template <typename T>
void RunFloatOfAny(const CustomContext& ctx, FloatOp op, const DenseTensor& x, DenseTensor* out) {
  if constexpr (!std::is_integral_v<T>) return RunFloat<T>(ctx, op, x, out);
  DenseTensor own = Unshared<T>(ctx, x, *out);
  ctx.template Alloc<float>(out);
  Cast(DtypeFor<T>(), Dtype::kFloat32, own.data(), out->data(), x.numel(), StreamOf(ctx));
  Unary(op, Dtype::kFloat32, out->data(), out->data(), x.numel(), StreamOf(ctx));
}

template <typename T>
void RunNumber(const CustomContext& ctx, NumberOp op, const DenseTensor& x, DenseTensor* out, Number p = {},
               Number q = {}) {
  ctx.template Alloc<T>(out);
  Unary(op, DtypeFor<T>(), x.data(), out->data(), x.numel(), StreamOf(ctx), p, q);
}

template <typename T> void RunTest(const CustomContext& ctx, TestOp op, const DenseTensor& x, DenseTensor* out) {
  DenseTensor own = Unshared<T>(ctx, x, *out);
  ctx.template Alloc<bool>(out);
  Unary(op, DtypeFor<T>(), own.data(), out->data(), x.numel(), StreamOf(ctx));
}

}  // namespace

template <typename T, typename Context> void SwishKernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {
  RunFloat<T>(ctx, FloatOp::kSilu, x, out);
}
template <typename T, typename Context>
void GeluKernel(const Context& ctx, const DenseTensor& x, bool approximate, DenseTensor* out) {
  RunFloat<T>(ctx, approximate ? FloatOp::kGeluTanh : FloatOp::kGeluErf, x, out);
}
template <typename T, typename Context>
void LeakyReluKernel(const Context& ctx, const DenseTensor& x, double alpha, DenseTensor* out) {
  RunFloat<T>(ctx, FloatOp::kLeakyRelu, x, out, alpha);
}
template <typename T, typename Context>
void SoftplusKernel(const Context& ctx, const DenseTensor& x, double beta, double threshold, DenseTensor* out) {
  RunFloat<T>(ctx, FloatOp::kSoftplus, x, out, beta, threshold);
}
template <typename T, typename Context>
void MishKernel(const Context& ctx, const DenseTensor& x, float threshold, DenseTensor* out) {
  RunFloat<T>(ctx, FloatOp::kMish, x, out, threshold);
}
template <typename T, typename Context>
void RoundKernel(const Context& ctx, const DenseTensor& x, const int decimals, DenseTensor* out) {
  RunFloat<T>(ctx, decimals < 0 ? FloatOp::kRoundTens : FloatOp::kRound, x, out, std::pow(10.0, std::abs(decimals)));
}
template <typename T, typename Context>
void DivScaleKernel(const Context& ctx, const DenseTensor& x, const Scalar& scale, DenseTensor* out) {
  RunFloat<T>(ctx, FloatOp::kDivScale, x, out, scale.to<double>());
}

template <typename T, typename Context>
void PowKernel(const Context& ctx, const DenseTensor& x, const Scalar& factor, DenseTensor* out) {
  RunNumber<T>(ctx, NumberOp::kPow, x, out, NumberOf<T>(factor));
}
template <typename T, typename Context>
void ScaleKernel(const Context& ctx, const DenseTensor& x, const Scalar& scale, const Scalar& bias,
                 bool bias_after_scale, DenseTensor* out) {
  RunNumber<T>(ctx, bias_after_scale ? NumberOp::kScaleLast : NumberOp::kScaleSum, x, out, NumberOf<T>(scale),
               NumberOf<T>(bias));
}
template <typename T, typename Context>
void IncrementKernel(const Context& ctx, const DenseTensor& x, float value, DenseTensor* out) {
  RunNumber<T>(ctx, NumberOp::kScaleLast, x, out, {1, 1}, {value, static_cast<int64_t>(value)});
}
template <typename T, typename Context>
void ClipKernel(const Context& ctx, const DenseTensor& x, const Scalar& min, const Scalar& max, DenseTensor* out) {
  Number low = NumberOf<T>(min), high = NumberOf<T>(max);
  PADDLE_ENFORCE_EQ(low.real <= high.real && low.whole <= high.whole, true,
                    common::errors::InvalidArgument("clip: min must not exceed max"));
  RunNumber<T>(ctx, NumberOp::kClip, x, out, low, high);
}

template <typename T, typename Context>
void BitwiseNotKernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  BitwiseNot(DtypeFor<T>(), x.data(), out->data(), x.numel(), StreamOf(ctx));
}

// In place, x and out are one tensor, and x.dtype() is the result's already.
template <typename T, typename Context>
void CastKernel(const Context& ctx, const DenseTensor& x, phi::DataType out_dtype, DenseTensor* out) {
  DenseTensor own = Unshared<T>(ctx, x, *out);
  ctx.Alloc(out, out_dtype);
  Cast(DtypeFor<T>(), DtypeOf(out_dtype), own.data(), out->data(), x.numel(), StreamOf(ctx));
}

}  // namespace nvgpu

#define NVGPU_FLOAT_TYPES nvgpu::fp16, nvgpu::bf16, float, double
#define NVGPU_NUMBER_TYPES int, int64_t, NVGPU_FLOAT_TYPES

#define NVGPU_UNARY(op, Run, Enum, Name, ...)                                                            \
  namespace nvgpu {                                                                                      \
  template <typename T, typename Context>                                                                \
  void Name##Kernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {                        \
    Run<T>(ctx, Enum::k##Name, x, out);                                                                  \
  }                                                                                                      \
  }                                                                                                      \
  PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Name##Kernel, __VA_ARGS__)

#define NVGPU_FLOAT(op, Name) NVGPU_UNARY(op, RunFloat, FloatOp, Name, NVGPU_FLOAT_TYPES) {}
#define NVGPU_FLOAT_OF_ANY(op, Name) NVGPU_UNARY(op, RunFloatOfAny, FloatOp, Name, NVGPU_NUMBER_TYPES) {}
#define NVGPU_NUMBER(op, Name) NVGPU_UNARY(op, RunNumber, NumberOp, Name, NVGPU_NUMBER_TYPES) {}
#define NVGPU_TEST(op, Name, ...) \
  NVGPU_UNARY(op, RunTest, TestOp, Name, __VA_ARGS__) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
#define NVGPU_OWN(op, Name, ...) PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Name##Kernel, __VA_ARGS__) {}

NVGPU_FLOAT(relu, Relu)
NVGPU_FLOAT(relu6, Relu6)
NVGPU_FLOAT(silu, Silu)
NVGPU_FLOAT(sigmoid, Sigmoid)
NVGPU_FLOAT(logsigmoid, LogSigmoid)
NVGPU_FLOAT(hardswish, HardSwish)
NVGPU_FLOAT(tanh, Tanh)
NVGPU_FLOAT(erf, Erf)
NVGPU_FLOAT(sqrt, Sqrt)
NVGPU_FLOAT(rsqrt, Rsqrt)
NVGPU_FLOAT(reciprocal, Reciprocal)
NVGPU_FLOAT(sin, Sin)
NVGPU_FLOAT(cos, Cos)
NVGPU_FLOAT(tan, Tan)
NVGPU_FLOAT(floor, Floor)
NVGPU_FLOAT(ceil, Ceil)
NVGPU_FLOAT(trunc, Trunc)
NVGPU_FLOAT_OF_ANY(exp, Exp)
NVGPU_FLOAT_OF_ANY(expm1, Expm1)
NVGPU_FLOAT_OF_ANY(log, Log)
NVGPU_FLOAT_OF_ANY(log2, Log2)
NVGPU_FLOAT_OF_ANY(log10, Log10)
NVGPU_FLOAT_OF_ANY(log1p, Log1p)
NVGPU_NUMBER(abs, Abs)
NVGPU_NUMBER(sign, Sign)
NVGPU_NUMBER(square, Square)
NVGPU_TEST(isnan, IsNan, NVGPU_NUMBER_TYPES)
NVGPU_TEST(isinf, IsInf, NVGPU_NUMBER_TYPES)
NVGPU_TEST(isfinite, IsFinite, NVGPU_NUMBER_TYPES)
NVGPU_TEST(logical_not, IsZero, NVGPU_ANY)

NVGPU_OWN(swish, Swish, NVGPU_FLOAT_TYPES)
NVGPU_OWN(gelu, Gelu, NVGPU_FLOAT_TYPES)
NVGPU_OWN(leaky_relu, LeakyRelu, NVGPU_FLOAT_TYPES)
NVGPU_OWN(softplus, Softplus, NVGPU_FLOAT_TYPES)
NVGPU_OWN(mish, Mish, NVGPU_FLOAT_TYPES)
NVGPU_OWN(round, Round, NVGPU_FLOAT_TYPES)
NVGPU_OWN(div_scale, DivScale, NVGPU_FLOAT_TYPES)
NVGPU_OWN(pow, Pow, NVGPU_NUMBER_TYPES)
NVGPU_OWN(scale, Scale, NVGPU_NUMBER_TYPES)
NVGPU_OWN(increment, Increment, NVGPU_NUMBER_TYPES)
NVGPU_OWN(clip, Clip, NVGPU_NUMBER_TYPES)
NVGPU_OWN(bitwise_not, BitwiseNot, bool, uint8_t, int8_t, int16_t, int, int64_t)
PD_REGISTER_PLUGIN_KERNEL(cast, nvgpu, ALL_LAYOUT, nvgpu::CastKernel, NVGPU_ANY) {
  kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED);
}
