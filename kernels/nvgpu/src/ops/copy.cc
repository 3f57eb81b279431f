// Copies, strided ones too, and tensors made of one value.
#include "../cuda/copy.h"

#include "../cuda/unary.h"
#include "glue.h"
#include "paddle/phi/common/int_array.h"
#include "paddle/phi/common/scalar.h"

namespace nvgpu {

using phi::IntArray;
using phi::Scalar;

namespace {

template <typename T> void FillWith(const CustomContext& ctx, const Scalar& scalar, DenseTensor* out) {
  T value = scalar.to<T>();
  ctx.template Alloc<T>(out);
  Fill(sizeof(T), &value, out->data(), out->numel(), StreamOf(ctx));
}

}  // namespace

// Paddle calls this before every kernel that is given a strided view.
template <typename T, typename Context>
void ContiguousKernel(const Context& ctx, const DenseTensor& input, DenseTensor* out) {
  phi::DenseTensorMeta meta = input.meta();
  meta.strides = meta.calc_strides(meta.dims);
  meta.offset = 0;
  out->set_meta(meta);
  ctx.template Alloc<T>(out);
  CopyStrided(sizeof(T), StridedOf(input), ContiguousOf(input.dims()), input.data(), out->data(), StreamOf(ctx));
}

// Writes into a view that exists: x[1:] = y. A single element is repeated.
template <typename T, typename Context>
void StridedCopyKernel(const Context& ctx, const DenseTensor& input, const std::vector<int64_t>& dims,
                       const std::vector<int64_t>& out_stride, int64_t offset, DenseTensor* out) {
  phi::DenseTensorMeta meta = input.meta();
  meta.dims = phi::make_ddim(dims);
  meta.strides = phi::make_ddim(out_stride);
  meta.offset = offset;
  out->set_meta(meta);
  PADDLE_ENFORCE_EQ(input.dims() == out->dims() || input.numel() == 1, true,
                    common::errors::InvalidArgument("strided_copy: the input's shape is [%s], the output's [%s]",
                                                    input.dims(), out->dims()));
  if (out->numel() == 0) return;
  Strided to = StridedOf(*out), from = StridedOf(input);
  if (input.dims() != out->dims()) from = BroadcastOf(phi::make_ddim({1}), out->dims());
  CopyStrided(sizeof(T), from, to, input.data(), out->data(), StreamOf(ctx));
}

template <typename T, typename Context> void AssignKernel(const Context& ctx, const DenseTensor& x, DenseTensor* out) {
  out->Resize(x.dims());
  ctx.template Alloc<T>(out);
  if (x.numel() == 0 || x.data() == out->data()) return;
  CopyStrided(sizeof(T), ContiguousOf(x.dims()), ContiguousOf(x.dims()), x.data(), out->data(), StreamOf(ctx));
}

template <typename T, typename Context>
void FillKernel(const Context& ctx, const DenseTensor& x, const Scalar& value, DenseTensor* out) {
  FillWith<T>(ctx, value, out);
}
template <typename T, typename Context>
void FullKernel(const Context& ctx, const IntArray& shape, const Scalar& value, phi::DataType dtype, DenseTensor* out) {
  out->Resize(phi::make_ddim(shape.GetData()));
  FillWith<T>(ctx, value, out);
}
template <typename T, typename Context>
void FullLikeKernel(const Context& ctx, const DenseTensor& x, const Scalar& value, phi::DataType dtype,
                    DenseTensor* out) {
  FillWith<T>(ctx, value, out);
}
template <typename T, typename Context>
void FullBatchSizeLikeKernel(const Context& ctx, const DenseTensor& x, const std::vector<int>& shape,
                             const Scalar& value, phi::DataType dtype, int x_batch_size_dim, int out_batch_size_dim,
                             DenseTensor* out) {
  FillWith<T>(ctx, value, out);
}

// The value stays on the device: a cast where the types differ, then a copy that repeats it.
template <typename T, typename Context>
void FullWithTensorKernel(const Context& ctx, const DenseTensor& value, const IntArray& shape, phi::DataType dtype,
                          DenseTensor* out) {
  DenseTensor one;
  one.Resize(phi::make_ddim({1}));
  ctx.template Alloc<T>(&one);
  Cast(DtypeOf(value), DtypeFor<T>(), value.data(), one.data(), 1, StreamOf(ctx));
  out->Resize(phi::make_ddim(shape.GetData()));
  ctx.template Alloc<T>(out);
  CopyStrided(sizeof(T), BroadcastOf(one.dims(), out->dims()), ContiguousOf(out->dims()), one.data(), out->data(),
              StreamOf(ctx));
}

template <typename T, typename Context>
void AssignValueKernel(const Context& ctx, const std::vector<int>& shape, phi::DataType dtype,
                       const std::vector<Scalar>& values, DenseTensor* out) {
  out->Resize(phi::make_ddim(shape));
  ctx.template Alloc<T>(out);
  PADDLE_ENFORCE_EQ(out->numel(), static_cast<int64_t>(values.size()),
                    common::errors::InvalidArgument("assign_value: %d values for shape [%s]", values.size(),
                                                    out->dims()));
  std::unique_ptr<T[]> host(new T[values.size()]);  // std::vector<bool> has no bytes to copy
  for (size_t i = 0; i < values.size(); ++i) host[i] = values[i].to<T>();
  Upload(host.get(), out->data(), values.size() * sizeof(T), StreamOf(ctx));
}

}  // namespace nvgpu

#define NVGPU_OWN(op, Name, ...) PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Name##Kernel, __VA_ARGS__)

NVGPU_OWN(contiguous, Contiguous, NVGPU_ANY, phi::dtype::complex<float>, phi::dtype::complex<double>) {}
NVGPU_OWN(strided_copy, StridedCopy, NVGPU_ANY, phi::dtype::complex<float>, phi::dtype::complex<double>) {}
NVGPU_OWN(assign, Assign, NVGPU_ANY, phi::dtype::complex<float>, phi::dtype::complex<double>) {}
NVGPU_OWN(fill, Fill, NVGPU_ANY) {}
NVGPU_OWN(full, Full, NVGPU_ANY) {}
NVGPU_OWN(full_like, FullLike, NVGPU_ANY) { kernel->InputAt(0).SetBackend(phi::Backend::ALL_BACKEND); }
NVGPU_OWN(full_batch_size_like, FullBatchSizeLike, NVGPU_ANY) {
  kernel->InputAt(0).SetBackend(phi::Backend::ALL_BACKEND);
}
NVGPU_OWN(full_with_tensor, FullWithTensor, NVGPU_ANY) {}
NVGPU_OWN(assign_value, AssignValue, NVGPU_ANY) {}
