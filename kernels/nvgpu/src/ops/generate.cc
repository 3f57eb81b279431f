// arange, linspace, eye, one_hot and diag.
#include "../cuda/generate.h"

#include <type_traits>

#include "../cuda/copy.h"
#include "views.h"
// After the headers that it leans on.
#include "paddle/phi/kernels/funcs/range_function.h"

namespace nvgpu {

template <typename T, typename Context>
void ArangeTensorKernel(const Context& ctx, const DenseTensor& start, const DenseTensor& end, const DenseTensor& step,
                        DenseTensor* out) {
  using Number = std::conditional_t<std::is_integral<T>::value, int64_t, double>;
  // The length must be Paddle's own, which divides in fp32 for the narrower floats.
  using Divided = std::conditional_t<std::is_integral<T>::value || std::is_same<T, double>::value, T, float>;
  Scalar first(start), last(end), by(step);
  int64_t n = 0;
  phi::funcs::GetSize(first.to<Divided>(), last.to<Divided>(), by.to<Divided>(), &n);
  out->Resize(common::make_ddim({n}));
  ctx.template Alloc<T>(out);
  Arange(DtypeOf(*out), Number(first.to<T>()), Number(by.to<T>()), n, out->data(), StreamOf(ctx));
}

template <typename T, typename Context>
void LinspaceKernel(const Context& ctx, const DenseTensor& start, const DenseTensor& stop, const DenseTensor& number,
                    phi::DataType, DenseTensor* out) {
  int64_t n = Scalar(number).to<int64_t>();
  PADDLE_ENFORCE_GT(n, 0, common::errors::InvalidArgument("nvgpu: linspace of %d numbers; at least 1", n));
  out->Resize(common::make_ddim({n}));
  ctx.template Alloc<T>(out);
  double first = static_cast<double>(Scalar(start).to<T>()), last = static_cast<double>(Scalar(stop).to<T>());
  Linspace(DtypeOf(*out), first, last, n, out->data(), StreamOf(ctx));
}

template <typename T, typename Context>
void EyeKernel(const Context& ctx, const Scalar& num_rows, const Scalar& num_columns, phi::DataType, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  int64_t rows = num_rows.to<int64_t>(), columns = num_columns.to<int64_t>();
  T one = static_cast<T>(1);
  Eye(sizeof(T), &one, rows, columns == -1 ? rows : columns, out->data(), StreamOf(ctx));
}

template <typename T, typename Context>
void OneHotKernel(const Context& ctx, const DenseTensor& x, const Scalar& num_classes, DenseTensor* out) {
  int64_t classes = num_classes.to<int64_t>();
  std::vector<int64_t> dims = common::vectorize<int64_t>(x.dims());
  dims.push_back(classes);
  out->Resize(common::make_ddim(dims));
  float* to = ctx.template Alloc<float>(out);
  OneHot(DtypeOf(x), x.data(), x.numel(), classes, to, StreamOf(ctx));
}

// A matrix with x on its diagonal, or the diagonal of the matrix x; `offset` columns to the right (or rows below).
template <typename T, typename Context>
void DiagKernel(const Context& ctx, const DenseTensor& x, int offset, float padding_value, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  bool make = x.dims().size() < 2;
  const DenseTensor& matrix = make ? *out : x;
  T padding = static_cast<T>(padding_value);
  if (make) Fill(sizeof(T), &padding, out->data(), out->numel(), StreamOf(ctx));
  int64_t n = make ? x.numel() : out->numel(), columns = matrix.dims()[1];
  int64_t first = (offset > 0 ? offset : -offset * columns) * static_cast<int64_t>(sizeof(T));
  Strided diagonal, vector;
  Append(&diagonal, n, columns + 1);
  Append(&vector, n, 1);
  if (n == 0) return;
  if (make) CopyStrided(sizeof(T), vector, diagonal, x.data(), At(out->data(), first), StreamOf(ctx));
  if (!make) CopyStrided(sizeof(T), diagonal, vector, At(x.data(), first), out->data(), StreamOf(ctx));
}

}  // namespace nvgpu

#define NVGPU_RANGE float, double, int, int64_t, nvgpu::fp16, nvgpu::bf16

// The numbers given as tensors are read on the host: they stay where they are.
PD_REGISTER_PLUGIN_KERNEL(arange_tensor, nvgpu, ALL_LAYOUT, nvgpu::ArangeTensorKernel, NVGPU_RANGE) {
  for (int i = 0; i < 3; ++i) kernel->InputAt(i).SetBackend(phi::Backend::ALL_BACKEND);
}
PD_REGISTER_PLUGIN_KERNEL(linspace, nvgpu, ALL_LAYOUT, nvgpu::LinspaceKernel, NVGPU_RANGE) {
  for (int i = 0; i < 3; ++i) kernel->InputAt(i).SetBackend(phi::Backend::ALL_BACKEND);
}
PD_REGISTER_PLUGIN_KERNEL(eye, nvgpu, ALL_LAYOUT, nvgpu::EyeKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(one_hot, nvgpu, ALL_LAYOUT, nvgpu::OneHotKernel, int, int64_t) {
  kernel->OutputAt(0).SetDataType(phi::DataType::FLOAT32);
}
PD_REGISTER_PLUGIN_KERNEL(diag, nvgpu, ALL_LAYOUT, nvgpu::DiagKernel, NVGPU_ANY) {}
