#include "../cuda/norm.h"

#include "scratch.h"

namespace nvgpu {
namespace {

using Optional = paddle::optional<DenseTensor>;

const void* DataOf(const Optional& x) { return x ? x->data() : nullptr; }

// Statistics are in fp32, of fp64 in fp64.
void* AllocStatistic(const CustomContext& ctx, const DenseTensor& x, DenseTensor* out) {
  if (!out) return nullptr;
  return ctx.Alloc(out, x.dtype() == phi::DataType::FLOAT64 ? x.dtype() : phi::DataType::FLOAT32);
}

Dtype AffineDtype(const DenseTensor& x, const Optional& scale, const Optional& shift) {
  if (scale && shift) {
    PADDLE_ENFORCE_EQ(scale->dtype(), shift->dtype(),
                      common::errors::InvalidArgument("nvgpu norm: scale and bias differ in dtype"));
  }
  return scale ? DtypeOf(*scale) : shift ? DtypeOf(*shift) : DtypeOf(x);
}

RowNorm RowNormOf(const DenseTensor& x, const Optional& scale, const Optional& shift, int begin_norm_axis,
                  double epsilon) {
  const int rank = x.dims().size();
  RowNorm n;
  n.dtype = DtypeOf(x);
  n.affine = AffineDtype(x, scale, shift);
  n.rows = n.columns = 1;
  for (int i = 0; i < rank; ++i) (i < begin_norm_axis ? n.rows : n.columns) *= x.dims()[i];
  n.epsilon = epsilon;
  n.x = x.data();
  n.scale = DataOf(scale);
  n.shift = DataOf(shift);
  return n;
}

}  // namespace

template <typename T, typename Context>
void LayerNormKernel(const Context& ctx, const DenseTensor& x, const Optional& scale, const Optional& bias,
                     float epsilon, int begin_norm_axis, DenseTensor* out, DenseTensor* mean, DenseTensor* variance) {
  RowNorm n = RowNormOf(x, scale, bias, begin_norm_axis, epsilon);
  n.out = ctx.template Alloc<T>(out);
  n.mean = AllocStatistic(ctx, x, mean);
  n.spread = AllocStatistic(ctx, x, variance);
  RunRowNorm(n, StreamOf(ctx));
}

// F.rms_norm
template <typename T, typename Context>
void RmsNormKernel(const Context& ctx, const DenseTensor& x, const Optional& scale,
                   const std::vector<int64_t>& normalized_shape, double epsilon, DenseTensor* out,
                   DenseTensor* inverse) {
  const int axes = static_cast<int>(normalized_shape.size());
  RowNorm n = RowNormOf(x, scale, Optional(), x.dims().size() - axes, epsilon);
  n.centred = false;
  n.out = ctx.template Alloc<T>(out);
  n.spread = AllocStatistic(ctx, x, inverse);
  RunRowNorm(n, StreamOf(ctx));
}

// incubate.nn.functional.fused_rms_norm, without quantization: of x + bias + residual, which is an output too.
template <typename T, typename Context>
void FusedRmsNormKernel(const Context& ctx, const DenseTensor& x, const Optional& bias, const Optional& residual,
                        const DenseTensor& scale, const Optional& shift, float epsilon, int begin_norm_axis,
                        float quant_scale, int, float, float, DenseTensor* out, DenseTensor* residual_out,
                        DenseTensor* inverse) {
  PADDLE_ENFORCE_LE(quant_scale, 0.0f,
                    common::errors::Unimplemented("nvgpu fused_rms_norm: no quantization (quant_scale > 0)"));
  RowNorm n = RowNormOf(x, Optional(scale), shift, begin_norm_axis, epsilon);
  n.centred = false;
  n.bias = DataOf(bias);
  n.residual = DataOf(residual);
  n.out = ctx.template Alloc<T>(out);
  n.residual_out = residual ? ctx.template Alloc<T>(residual_out) : nullptr;
  n.spread = AllocStatistic(ctx, x, inverse);
  RunRowNorm(n, StreamOf(ctx));
}

template <typename T, typename Context>
void GroupNormKernel(const Context& ctx, const DenseTensor& x, const Optional& scale, const Optional& bias,
                     double epsilon, int groups, const std::string& layout, DenseTensor* out, DenseTensor* mean,
                     DenseTensor* variance) {
  PADDLE_ENFORCE_EQ(layout, "NCHW",
                    common::errors::Unimplemented("nvgpu group_norm: data_layout %s, allowed: NCHW", layout));
  DenseTensor own_mean, own_variance;  // where Paddle asks for none
  GroupNorm n;
  n.dtype = DtypeOf(x);
  n.affine = AffineDtype(x, scale, bias);
  n.batch = x.dims()[0];
  n.channels = x.dims()[1];
  n.groups = groups;
  n.area = n.batch * n.channels == 0 ? 0 : x.numel() / (n.batch * n.channels);
  n.epsilon = epsilon;
  n.x = x.data();
  n.scale = DataOf(scale);
  n.shift = DataOf(bias);
  n.out = ctx.Alloc(out, x.dtype());  // not T: with fp32 scales Paddle calls the fp32 kernel for an fp16 input
  for (DenseTensor** one : {&mean, &variance}) {
    if (!*one) *one = one == &mean ? &own_mean : &own_variance;
    (*one)->Resize(phi::make_ddim({n.batch, n.groups}));
  }
  n.mean = AllocStatistic(ctx, x, mean);
  n.variance = AllocStatistic(ctx, x, variance);
  RunGroupNorm(n, ScratchOf(ctx), StreamOf(ctx));
}

}  // namespace nvgpu

#define FLOATS float, double, nvgpu::fp16, nvgpu::bf16
// Statistics are fp32 (fp64 of fp64), whatever the input.
#define STATISTIC(i) kernel->OutputAt(i).SetDataType(phi::DataType::UNDEFINED)

PD_REGISTER_PLUGIN_KERNEL(layer_norm, nvgpu, ALL_LAYOUT, nvgpu::LayerNormKernel, FLOATS) {
  STATISTIC(1);
  STATISTIC(2);
}
PD_REGISTER_PLUGIN_KERNEL(rms_norm, nvgpu, ALL_LAYOUT, nvgpu::RmsNormKernel, FLOATS) { STATISTIC(1); }
PD_REGISTER_PLUGIN_KERNEL(fused_rms_norm_quant, nvgpu, ALL_LAYOUT, nvgpu::FusedRmsNormKernel, FLOATS) { STATISTIC(2); }
PD_REGISTER_PLUGIN_KERNEL(group_norm, nvgpu, ALL_LAYOUT, nvgpu::GroupNormKernel, FLOATS) {
  STATISTIC(1);
  STATISTIC(2);
}
