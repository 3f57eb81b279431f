#include "../cuda/softmax.h"

#include "scratch.h"

namespace nvgpu {
namespace {

template <typename T> void Run(const CustomContext& ctx, bool log, const DenseTensor& x, int axis, DenseTensor* out) {
  T* data = ctx.template Alloc<T>(out);
  const About about(x.dims(), axis);
  Softmax(DtypeOf(x), log, x.data(), data, about.outer, about.length, about.inner, StreamOf(ctx));
}

}  // namespace

template <typename T, typename Context>
void SoftmaxKernel(const Context& ctx, const DenseTensor& x, int axis, DenseTensor* out) {
  Run<T>(ctx, false, x, axis, out);
}

template <typename T, typename Context>
void LogSoftmaxKernel(const Context& ctx, const DenseTensor& x, int axis, DenseTensor* out) {
  Run<T>(ctx, true, x, axis, out);
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(softmax, nvgpu, ALL_LAYOUT, nvgpu::SoftmaxKernel, float, double, nvgpu::fp16, nvgpu::bf16) {}
PD_REGISTER_PLUGIN_KERNEL(log_softmax, nvgpu, ALL_LAYOUT, nvgpu::LogSoftmaxKernel, float, double, nvgpu::fp16,
                          nvgpu::bf16) {}
