#include "../cuda/order.h"

#include "../cuda/close.h"
#include "scratch.h"

namespace nvgpu {

template <typename T, typename Context>
void CumsumKernel(const Context& ctx, const DenseTensor& x, const phi::Scalar& axis, bool flatten, bool exclusive,
                  bool reverse, DenseTensor* out) {
  T* data = ctx.template Alloc<T>(out);
  const About about(x.dims(), flatten ? 0 : axis.to<int>());
  Scan scan{about.outer, about.length, about.inner, exclusive, reverse};
  if (flatten) scan = {1, x.numel(), 1, exclusive, reverse};
  CumSum(DtypeOf(x), scan, x.data(), data, StreamOf(ctx));
}

template <typename T, typename Context>
void TopkKernel(const Context& ctx, const DenseTensor& x, const phi::Scalar& k, int axis, bool largest, bool,
                DenseTensor* out, DenseTensor* indices) {
  const int rank = x.dims().size(), count = k.to<int>();
  if (rank > 0) {  // a k that was on the device was unknown to InferMeta
    phi::DDim dims = x.dims();
    dims[axis < 0 ? axis + rank : axis] = count;
    out->Resize(dims);
    indices->Resize(dims);
  }
  T* data = ctx.template Alloc<T>(out);
  int64_t* places = ctx.template Alloc<int64_t>(indices);
  const About about(x.dims(), axis);
  Sorted(DtypeOf(x), {about.outer, about.length, about.inner, count, largest}, x.data(), data, places, StreamOf(ctx));
}

template <typename T, typename Context>
void ArgsortKernel(const Context& ctx, const DenseTensor& x, int axis, bool descending, bool, DenseTensor* out,
                   DenseTensor* indices) {
  T* data = ctx.template Alloc<T>(out);
  int64_t* places = ctx.template Alloc<int64_t>(indices);
  const About about(x.dims(), axis);
  Sorted(DtypeOf(x), {about.outer, about.length, about.inner, about.length, descending}, x.data(), data, places,
         StreamOf(ctx));
}

template <typename T, typename Context>
void EqualAllKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  bool* data = ctx.template Alloc<bool>(out);
  if (x.dims() == y.dims()) return EqualAll(DtypeOf(x), x.data(), y.data(), data, x.numel(), StreamOf(ctx));
  cudaMemsetAsync(data, 0, 1, StreamOf(ctx));  // other shapes are never equal
}

template <typename T, typename Context>
void AllCloseKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, const phi::Scalar& rtol,
                    const phi::Scalar& atol, bool equal_nan, DenseTensor* out) {
  bool* data = ctx.template Alloc<bool>(out);
  AllClose(DtypeOf(x), x.data(), y.data(), data, x.numel(), {rtol.to<double>(), atol.to<double>(), equal_nan},
           StreamOf(ctx));
}

template <typename T, typename Context>
void IsCloseKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, const phi::Scalar& rtol,
                   const phi::Scalar& atol, bool equal_nan, DenseTensor* out) {
  bool* data = ctx.template Alloc<bool>(out);
  IsClose(DtypeOf(x), x.data(), y.data(), data, x.numel(), {rtol.to<double>(), atol.to<double>(), equal_nan},
          StreamOf(ctx));
}

}  // namespace nvgpu

#define NUMBERS float, double, nvgpu::fp16, nvgpu::bf16, int, int64_t
#define REGISTER(op, Kernel, ...) PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Kernel, __VA_ARGS__)

REGISTER(cumsum, CumsumKernel, NUMBERS) {}
REGISTER(topk, TopkKernel, NUMBERS) { kernel->OutputAt(1).SetDataType(phi::DataType::INT64); }
REGISTER(argsort, ArgsortKernel, NUMBERS) { kernel->OutputAt(1).SetDataType(phi::DataType::INT64); }
REGISTER(equal_all, EqualAllKernel, NUMBERS, bool) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(allclose, AllCloseKernel, NUMBERS) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
REGISTER(isclose, IsCloseKernel, NUMBERS) { kernel->OutputAt(0).SetDataType(phi::DataType::BOOL); }
