#include "../cuda/random.h"

#include "glue.h"
#include "paddle/phi/core/generator.h"

namespace nvgpu {
namespace {

// The op's own seed, or the device's generator, which moves on by what n numbers take. A captured graph repeats its
// numbers.
Philox PhiloxOf(const CustomContext& ctx, int seed, int64_t n) {
  if (seed != 0) return {static_cast<uint64_t>(seed), 0};
  const auto state = ctx.GetGenerator()->IncrementOffset(PhiloxSteps(n));
  return {state.first, state.second};
}

}  // namespace

template <typename T, typename Context>
void GaussianKernel(const Context& ctx, const phi::IntArray& shape, float mean, float std, int seed, phi::DataType,
                    DenseTensor* out) {
  out->Resize(phi::make_ddim(shape.GetData()));
  T* data = ctx.template Alloc<T>(out);
  RandomNormal(DtypeOf(*out), PhiloxOf(ctx, seed, out->numel()), mean, std, data, out->numel(), StreamOf(ctx));
}

template <typename T, typename Context>
void GaussianInplaceKernel(const Context& ctx, const DenseTensor&, float mean, float std, int seed, DenseTensor* out) {
  T* data = ctx.template Alloc<T>(out);
  RandomNormal(DtypeOf(*out), PhiloxOf(ctx, seed, out->numel()), mean, std, data, out->numel(), StreamOf(ctx));
}

template <typename T, typename Context>
void UniformKernel(const Context& ctx, const phi::IntArray& shape, phi::DataType, const phi::Scalar& low,
                   const phi::Scalar& high, int seed, DenseTensor* out) {
  out->Resize(phi::make_ddim(shape.GetData()));
  T* data = ctx.template Alloc<T>(out);
  RandomUniform(DtypeOf(*out), PhiloxOf(ctx, seed, out->numel()), low.to<double>(), high.to<double>(), data,
                out->numel(), StreamOf(ctx));
}

// The diagonal is for Paddle's old initializers: diag_num is 0 in 3.x.
template <typename T, typename Context>
void UniformInplaceKernel(const Context& ctx, const DenseTensor&, float low, float high, int seed, int diag_num, int,
                          float, DenseTensor* out) {
  PADDLE_ENFORCE_EQ(diag_num, 0, common::errors::Unimplemented("nvgpu uniform_: diag_num %d, allowed: 0", diag_num));
  T* data = ctx.template Alloc<T>(out);
  RandomUniform(DtypeOf(*out), PhiloxOf(ctx, seed, out->numel()), low, high, data, out->numel(), StreamOf(ctx));
}

template <typename T, typename Context>
void TruncatedGaussianKernel(const Context& ctx, const std::vector<int>& shape, float mean, float std, int seed,
                             float low, float high, phi::DataType, DenseTensor* out) {
  out->Resize(phi::make_ddim(shape));
  T* data = ctx.template Alloc<T>(out);
  RandomTruncatedNormal(DtypeOf(*out), PhiloxOf(ctx, seed, out->numel()), mean, std, low, high, data, out->numel(),
                        StreamOf(ctx));
}

template <typename T, typename Context>
void ExponentialKernel(const Context& ctx, const DenseTensor&, float rate, DenseTensor* out) {
  T* data = ctx.template Alloc<T>(out);
  RandomExponential(DtypeOf(*out), PhiloxOf(ctx, 0, out->numel()), rate, data, out->numel(), StreamOf(ctx));
}

template <typename T, typename Context>
void RandintKernel(const Context& ctx, int low, int high, const phi::IntArray& shape, phi::DataType, DenseTensor* out) {
  out->Resize(phi::make_ddim(shape.GetData()));
  T* data = ctx.template Alloc<T>(out);
  RandomIntegers(DtypeOf(*out), PhiloxOf(ctx, 0, out->numel()), low, high, data, out->numel(), StreamOf(ctx));
}

template <typename T, typename Context>
void RandpermKernel(const Context& ctx, int n, phi::DataType, DenseTensor* out) {
  T* data = ctx.template Alloc<T>(out);
  RandomPermutation(DtypeOf(*out), PhiloxOf(ctx, 0, n), data, n, StreamOf(ctx));
}

template <typename T, typename Context>
void BernoulliKernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {
  T* data = ctx.template Alloc<T>(out);
  RandomBernoulli(DtypeOf(x), PhiloxOf(ctx, 0, x.numel()), x.data(), data, x.numel(), StreamOf(ctx));
}

// Inference scales by 1 or, where training did not scale, by 1 - p: nothing is dropped (p = 0 there).
template <typename T, typename Context>
void DropoutKernel(const Context& ctx, const DenseTensor& x, const paddle::optional<DenseTensor>& seed_tensor,
                   const phi::Scalar& p_scalar, bool is_test, const std::string& mode, int seed, bool fix_seed,
                   DenseTensor* out, DenseTensor* mask) {
  PADDLE_ENFORCE_EQ(bool(seed_tensor), false, common::errors::Unimplemented("nvgpu dropout: a tensor as seed"));
  const bool upscale = mode == "upscale_in_train";
  const double p = p_scalar.to<double>(), keep = is_test ? 0 : p;
  const double scale = is_test ? (upscale ? 1 : 1 - p) : (upscale && p < 1 ? 1 / (1 - p) : 1);
  T* data = ctx.template Alloc<T>(out);
  uint8_t* kept = is_test || !mask ? nullptr : ctx.template Alloc<uint8_t>(mask);
  const Philox from = is_test ? Philox() : PhiloxOf(ctx, fix_seed ? seed : 0, x.numel());
  RandomDropout(DtypeOf(x), from, keep, scale, x.data(), data, kept, x.numel(), StreamOf(ctx));
}

}  // namespace nvgpu

#define FLOATS float, double, nvgpu::fp16, nvgpu::bf16
#define REGISTER(op, Kernel, ...) PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Kernel, __VA_ARGS__)

REGISTER(gaussian, GaussianKernel, FLOATS) {}
REGISTER(gaussian_inplace, GaussianInplaceKernel, FLOATS) {}
REGISTER(uniform, UniformKernel, FLOATS) {}
REGISTER(uniform_inplace, UniformInplaceKernel, FLOATS) {}
REGISTER(truncated_gaussian_random, TruncatedGaussianKernel, FLOATS) {}
REGISTER(exponential, ExponentialKernel, FLOATS) {}
REGISTER(randint, RandintKernel, int, int64_t) {}
REGISTER(randperm, RandpermKernel, int, int64_t, float, double) {}
REGISTER(bernoulli, BernoulliKernel, FLOATS) {}
REGISTER(dropout, DropoutKernel, FLOATS) {
  kernel->InputAt(1).SetBackend(phi::Backend::ALL_BACKEND);
  kernel->OutputAt(1).SetDataType(phi::DataType::UINT8);
}
