#include "../cuda/reduce.h"

#include "scratch.h"

namespace nvgpu {
namespace {

// No axes: all of them.
Reduction ReductionOf(const DenseTensor& x, const std::vector<int64_t>& axes, const DenseTensor& out) {
  Reduction r;
  r.rank = x.dims().size();
  r.in = DtypeOf(x);
  r.out = DtypeOf(out);
  for (int i = 0; i < r.rank; ++i) {
    r.dims[i] = x.dims()[i];
    r.reduced[i] = axes.empty();
  }
  for (int64_t axis : axes)
    if (r.rank > 0) r.reduced[axis < 0 ? axis + r.rank : axis] = true;
  return r;
}

void RunTo(const CustomContext& ctx, Reduce what, const DenseTensor& x, const std::vector<int64_t>& axes,
           phi::DataType type, DenseTensor* out) {
  void* data = ctx.Alloc(out, type);
  if (out->numel() > 0) RunReduce(what, ReductionOf(x, axes, *out), x.data(), data, ScratchOf(ctx), StreamOf(ctx));
}

void RunNormTo(const CustomContext& ctx, float p, bool root, const DenseTensor& x, const std::vector<int64_t>& axes,
               DenseTensor* out) {
  void* data = ctx.Alloc(out, x.dtype());
  if (out->numel() > 0) RunNorm(p, root, ReductionOf(x, axes, *out), x.data(), data, ScratchOf(ctx), StreamOf(ctx));
}

bool IsFloat(phi::DataType type) {
  return type == phi::DataType::FLOAT16 || type == phi::DataType::BFLOAT16 || type == phi::DataType::FLOAT32 ||
         type == phi::DataType::FLOAT64;
}

}  // namespace

template <typename T, typename Context>
void SumKernel(const Context& ctx, const DenseTensor& x, const phi::IntArray& axes, phi::DataType out_dtype, bool,
               DenseTensor* out) {
  const phi::DataType type = out_dtype == phi::DataType::UNDEFINED ? out->dtype() : out_dtype;
  PADDLE_ENFORCE_EQ(
      IsFloat(x.dtype()) && !IsFloat(type), false,
      common::errors::Unimplemented("nvgpu sum: floats are not summed as %s, cast first", phi::DataTypeToString(type)));
  RunTo(ctx, Reduce::kSum, x, axes.GetData(), type, out);
}

template <typename T, typename Context>
void MeanKernel(const Context& ctx, const DenseTensor& x, const phi::IntArray& axes, bool, DenseTensor* out) {
  RunTo(ctx, Reduce::kMean, x, axes.GetData(), x.dtype(), out);
}

template <typename T, typename Context> void MeanAllKernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {
  RunTo(ctx, Reduce::kMean, x, {}, x.dtype(), out);
}

template <typename T, typename Context>
void ProdKernel(const Context& ctx, const DenseTensor& x, const phi::IntArray& axes, bool, bool reduce_all,
                DenseTensor* out) {
  RunTo(ctx, Reduce::kProd, x, reduce_all ? std::vector<int64_t>() : axes.GetData(), out->dtype(), out);
}

template <typename T, typename Context>
void MaxKernel(const Context& ctx, const DenseTensor& x, const phi::IntArray& axes, bool, DenseTensor* out) {
  RunTo(ctx, Reduce::kMax, x, axes.GetData(), x.dtype(), out);
}

template <typename T, typename Context>
void MinKernel(const Context& ctx, const DenseTensor& x, const phi::IntArray& axes, bool, DenseTensor* out) {
  RunTo(ctx, Reduce::kMin, x, axes.GetData(), x.dtype(), out);
}

template <typename T, typename Context>
void AMaxKernel(const Context& ctx, const DenseTensor& x, const std::vector<int64_t>& axes, bool, DenseTensor* out) {
  RunTo(ctx, Reduce::kMax, x, axes, x.dtype(), out);
}

template <typename T, typename Context>
void AMinKernel(const Context& ctx, const DenseTensor& x, const std::vector<int64_t>& axes, bool, DenseTensor* out) {
  RunTo(ctx, Reduce::kMin, x, axes, x.dtype(), out);
}

template <typename T, typename Context>
void AnyKernel(const Context& ctx, const DenseTensor& x, const std::vector<int64_t>& axes, bool, DenseTensor* out) {
  RunTo(ctx, Reduce::kAny, x, axes, phi::DataType::BOOL, out);
}

template <typename T, typename Context>
void AllKernel(const Context& ctx, const DenseTensor& x, const std::vector<int64_t>& axes, bool, DenseTensor* out) {
  RunTo(ctx, Reduce::kAll, x, axes, phi::DataType::BOOL, out);
}

template <Reduce what>
void RunArg(const CustomContext& ctx, const DenseTensor& x, const phi::Scalar& axis, bool flatten, phi::DataType type,
            DenseTensor* out) {
  const std::vector<int64_t> axes = flatten ? std::vector<int64_t>() : std::vector<int64_t>{axis.to<int64_t>()};
  RunTo(ctx, what, x, axes, type == phi::DataType::UNDEFINED ? out->dtype() : type, out);
}

template <typename T, typename Context>
void ArgMaxKernel(const Context& ctx, const DenseTensor& x, const phi::Scalar& axis, bool, bool flatten,
                  phi::DataType type, DenseTensor* out) {
  RunArg<Reduce::kArgMax>(ctx, x, axis, flatten, type, out);
}

template <typename T, typename Context>
void ArgMinKernel(const Context& ctx, const DenseTensor& x, const phi::Scalar& axis, bool, bool flatten,
                  phi::DataType type, DenseTensor* out) {
  RunArg<Reduce::kArgMin>(ctx, x, axis, flatten, type, out);
}

template <typename T, typename Context>
void LogSumExpKernel(const Context& ctx, const DenseTensor& x, const std::vector<int>& axes, bool, bool reduce_all,
                     DenseTensor* out) {
  const std::vector<int64_t> wide =
      reduce_all ? std::vector<int64_t>() : std::vector<int64_t>(axes.begin(), axes.end());
  RunTo(ctx, Reduce::kLogSumExp, x, wide, x.dtype(), out);
}

template <typename T, typename Context>
void PNormKernel(const Context& ctx, const DenseTensor& x, float p, int axis, float, bool, bool asvector,
                 DenseTensor* out) {
  RunNormTo(ctx, p, true, x, asvector ? std::vector<int64_t>() : std::vector<int64_t>{axis}, out);
}

template <typename T, typename Context>
void FrobeniusNormKernel(const Context& ctx, const DenseTensor& x, const phi::IntArray& axes, bool, bool reduce_all,
                         DenseTensor* out) {
  RunNormTo(ctx, 2, true, x, reduce_all ? std::vector<int64_t>() : axes.GetData(), out);
}

template <typename T, typename Context>
void SquaredL2NormKernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {
  RunNormTo(ctx, 2, false, x, {}, out);
}

template <typename T, typename Context> void L1NormKernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {
  RunNormTo(ctx, 1, false, x, {}, out);
}

}  // namespace nvgpu

#define FLOATS float, double, nvgpu::fp16, nvgpu::bf16
#define NUMBERS FLOATS, int, int64_t
#define REGISTER(op, Kernel, ...) PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Kernel, __VA_ARGS__)

// Results whose dtype is not the input's say so, for static programs.
REGISTER(sum, SumKernel, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED); }
REGISTER(mean, MeanKernel, FLOATS) {}
REGISTER(mean_all, MeanAllKernel, FLOATS) {}
REGISTER(prod, ProdKernel, NUMBERS) { kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED); }
REGISTER(max, MaxKernel, NUMBERS) {}
REGISTER(min, MinKernel, NUMBERS) {}
REGISTER(amax, AMaxKernel, NUMBERS) {}
REGISTER(amin, AMinKernel, NUMBERS) {}
REGISTER(any, AnyKernel, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(all, AllKernel, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(argmax, ArgMaxKernel, NUMBERS) { kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED); }
REGISTER(argmin, ArgMinKernel, NUMBERS) { kernel->OutputAt(0).SetDataType(phi::DataType::UNDEFINED); }
REGISTER(logsumexp, LogSumExpKernel, FLOATS) {}
REGISTER(p_norm, PNormKernel, FLOATS) {}
REGISTER(frobenius_norm, FrobeniusNormKernel, FLOATS) {}
REGISTER(squared_l2_norm, SquaredL2NormKernel, FLOATS) {}
REGISTER(l1_norm, L1NormKernel, FLOATS) {}
