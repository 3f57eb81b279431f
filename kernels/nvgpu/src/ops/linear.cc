// x W + b, with an activation or none: one kernel of cuBLASLt where it has one.
#include "../cuda/linear.h"
#include "blas.h"
#include "scratch.h"

namespace nvgpu {
namespace {

// out (m x n) starts as the bias in each row, the product is added to it, then the activation runs in place.
void Unfused(Dtype dtype, const GemmShape& shape, Epilogue epilogue, const void* x, const void* y,
             const void* bias, void* out, cudaStream_t stream) {
  Strided rows;
  rows.rank = 2;
  rows.dims[0] = shape.m, rows.dims[1] = shape.n;
  rows.strides[1] = 1;
  Expand(dtype, rows, 1, bias, out, stream);
  if (shape.k != 0) Gemm(dtype, shape, 1, x, y, 1, out, stream);
  if (epilogue == Epilogue::kBias) return;
  auto activation = epilogue == Epilogue::kBiasRelu ? Activation::kRelu : Activation::kGeluTanh;
  Activate(dtype, activation, out, shape.m * shape.n, stream);
}

// cuBLASLt says nothing of how exact the tanh in its GELU is. fp16 and bf16 can bear the GPU's approximate one (11
// bits); in fp32 our own GELU runs after the product.
void Linear(const CustomContext& ctx, Dtype dtype, const GemmShape& shape, Epilogue epilogue, const void* x,
            const void* y, const void* bias, void* out) {
  cudaStream_t stream = StreamOf(ctx);
  const bool exact_gelu = dtype == Dtype::kFloat32 && epilogue == Epilogue::kBiasGelu;
  const Epilogue fused = exact_gelu ? Epilogue::kBias : epilogue;
  if (shape.k == 0 || !GemmBias(dtype, shape, fused, x, y, bias, out, ScratchOf(ctx), stream)) {
    Unfused(dtype, shape, epilogue, x, y, bias, out, stream);
  } else if (exact_gelu) {
    Activate(dtype, Activation::kGeluTanh, out, shape.m * shape.n, stream);
  }
}

Epilogue EpilogueOf(const std::string& activation) {
  if (activation == "none") return Epilogue::kBias;
  if (activation == "relu") return Epilogue::kBiasRelu;
  if (activation == "gelu") return Epilogue::kBiasGelu;
  PADDLE_THROW(common::errors::InvalidArgument("fused_gemm_epilogue: activation is \"%s\", must be none, relu or gelu",
                                               activation));
}

// A bias of one element stands for n of them.
template <typename T>
DenseTensor WholeBias(const CustomContext& ctx, const DenseTensor& bias, int64_t n) {
  if (bias.numel() == n) return bias;
  PADDLE_ENFORCE_EQ(bias.numel(), 1, common::errors::InvalidArgument("linear: bias has %d elements, must have %d or 1",
                                                                     bias.numel(), n));
  DenseTensor whole;
  whole.Resize(common::make_ddim({n}));
  ctx.template Alloc<T>(&whole);
  Expand(DtypeOf(bias), BroadcastOf(bias.dims(), whole.dims()), 1, bias.data(), whole.data(), StreamOf(ctx));
  return whole;
}

}  // namespace

// x: [..., k], or [k, ...] if trans_x; y: [k, n], or [n, k] if trans_y; bias: [n]. GELU is the tanh form.
// reserve_space is for the backward pass, which nvgpu does not have: it stays without memory.
template <typename T, typename Context>
void FusedGemmEpilogueKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, const DenseTensor& bias,
                             bool trans_x, bool trans_y, const std::string& activation, DenseTensor* out,
                             DenseTensor* reserve_space) {
  const Epilogue epilogue = EpilogueOf(activation);
  ctx.template Alloc<T>(out);
  if (out->numel() == 0) return;
  GemmShape shape;
  shape.transpose_x = trans_x, shape.transpose_y = trans_y;
  shape.k = y.dims()[trans_y ? 1 : 0];
  shape.n = y.dims()[trans_y ? 0 : 1];
  shape.m = out->numel() / shape.n;
  PADDLE_ENFORCE_EQ(x.numel() == shape.m * shape.k && bias.numel() == shape.n, true,
                    common::errors::InvalidArgument("fused_gemm_epilogue: x [%s], y [%s] and bias [%s] do not fit",
                                                    x.dims(), y.dims(), bias.dims()));
  Linear(ctx, DtypeOf(x), shape, epilogue, x.data(), y.data(), bias.data(), out->data());
}

// input: [..., k]; weight: [k, n], or [n, k] if transpose_weight, or [k] for n = 1; bias: [n] or one element.
template <typename T, typename Context>
void LinearV2Kernel(const Context& ctx, const DenseTensor& input, const DenseTensor& weight, const DenseTensor& bias,
                    bool transpose_weight, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  if (out->numel() == 0) return;
  const bool vector = weight.dims().size() == 1;
  GemmShape shape;
  shape.transpose_y = transpose_weight && !vector;
  shape.k = weight.dims()[shape.transpose_y ? 1 : 0];
  shape.n = vector ? 1 : weight.dims()[shape.transpose_y ? 0 : 1];
  shape.m = out->numel() / shape.n;
  DenseTensor whole = WholeBias<T>(ctx, bias, shape.n);
  Linear(ctx, DtypeOf(input), shape, Epilogue::kBias, input.data(), weight.data(), whole.data(), out->data());
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(fused_gemm_epilogue, nvgpu, ALL_LAYOUT, nvgpu::FusedGemmEpilogueKernel, float, double,
                          nvgpu::fp16, nvgpu::bf16) {}
PD_REGISTER_PLUGIN_KERNEL(linear_v2, nvgpu, ALL_LAYOUT, nvgpu::LinearV2Kernel, float, double, nvgpu::fp16,
                          nvgpu::bf16) {}
