// x[ids] read and assigned with integer tensors or one mask: what Paddle's indexing of tensors calls.
#include <algorithm>

#include "../cuda/gather.h"
#include "../cuda/copy.h"
#include "views.h"

namespace nvgpu {
namespace {

using Dims = std::vector<int64_t>;

// Paddle describes the indexing as axes of the result: x's own, with x's strides in elements, and those of the ids,
// with stride 0. `index_dims` holds the sizes of the axes indexed, then -1, then the shape of the ids (and -1);
// `index_strides` the bytes that a step along each of those axes moves x.
struct Description {
  const Dims& dims;
  const Dims& strides;
  const Dims& index_dims;
  const Dims& index_strides;
};

DDim IdShape(const DenseTensor& ids, const Dims& index_dims) {
  auto mark = std::find(index_dims.begin(), index_dims.end(), -1);
  if (mark == index_dims.end() || ids.dtype() == phi::DataType::BOOL) return ids.dims();
  return common::make_ddim(Dims(mark + 1, std::find(mark + 1, index_dims.end(), -1)));
}

Indexed IndexedOf(const Description& d, const std::vector<const DenseTensor*>& ids, const Strided& y,
                  int64_t size) {
  DDim dims = common::make_ddim(d.dims);
  Strided id_axes = BroadcastOf(IdShape(*ids[0], d.index_dims), dims);
  Indexed at;
  at.rank = dims.size();
  at.tensors = static_cast<int>(ids.size());
  at.id_type = DtypeOf(*ids[0]);
  PADDLE_ENFORCE_LE(std::max(at.rank, at.tensors), kMaxRank,
                    common::errors::InvalidArgument("nvgpu: at most %d axes", kMaxRank));
  for (int i = 0; i < at.rank; ++i) {
    at.dims[i] = d.dims[i];
    at.x[i] = d.strides[i];
    at.y[i] = y.strides[i];
    at.ids[i] = id_axes.strides[i];
  }
  for (int k = 0; k < at.tensors; ++k) {
    at.id[k] = ids[k]->data();
    at.size[k] = d.index_dims[k];
    at.stride[k] = d.index_strides[k] / size;
  }
  return at;
}

void Put(const CustomContext& ctx, const DenseTensor& x, const std::vector<const DenseTensor*>& ids,
         const DenseTensor& value, const Description& d, int64_t slice_offset, DenseTensor* out) {
  CopyWhole(ctx, x, out);
  Strided y = BroadcastOf(value.dims(), common::make_ddim(d.dims));
  Indexed at = IndexedOf(d, ids, y, SizeOf(x));
  WriteIndexed(SizeOf(x), at, value.data(), At(out->data(), slice_offset), StreamOf(ctx));
}

}  // namespace

template <typename T, typename Context>
void IndexElementwiseGetKernel(const Context& ctx, const DenseTensor& x, const std::vector<const DenseTensor*>& ids,
                               const Dims& input_dims, const Dims& input_strides, const Dims& index_dims,
                               const Dims& index_strides, const int64_t slice_offset, const bool, const bool,
                               DenseTensor* out) {
  out->Resize(common::make_ddim(input_dims));
  ctx.template Alloc<T>(out);
  Description d = {input_dims, input_strides, index_dims, index_strides};
  Indexed at = IndexedOf(d, ids, ContiguousOf(out->dims()), SizeOf(x));
  ReadIndexed(sizeof(T), at, At(x.data(), slice_offset), out->data(), StreamOf(ctx));
}

template <typename T, typename Context>
void IndexElementwisePutWithTensorKernel(const Context& ctx, const DenseTensor& x,
                                         const std::vector<const DenseTensor*>& ids, const DenseTensor& value,
                                         const Dims& input_dims, const Dims& input_strides, const Dims& index_dims,
                                         const Dims& index_strides, const int64_t slice_offset, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Put(ctx, x, ids, value, {input_dims, input_strides, index_dims, index_strides}, slice_offset, out);
}

template <typename T, typename Context>
void IndexElementwisePutKernel(const Context& ctx, const DenseTensor& x, const std::vector<const DenseTensor*>& ids,
                               const Scalar& value, const Dims& input_dims, const Dims& input_strides,
                               const Dims& index_dims, const Dims& index_strides, const int64_t slice_offset,
                               DenseTensor* out) {
  ctx.template Alloc<T>(out);
  DenseTensor one;
  one.Resize(common::make_ddim({1}));
  ctx.template Alloc<T>(&one);
  T number = value.to<T>();
  Fill(sizeof(T), &number, one.data(), 1, StreamOf(ctx));
  Put(ctx, x, ids, one, {input_dims, input_strides, index_dims, index_strides}, slice_offset, out);
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(index_elementwise_get, nvgpu, ALL_LAYOUT, nvgpu::IndexElementwiseGetKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(index_elementwise_put, nvgpu, ALL_LAYOUT, nvgpu::IndexElementwisePutKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(index_elementwise_put_with_tensor, nvgpu, ALL_LAYOUT,
                          nvgpu::IndexElementwisePutWithTensorKernel, NVGPU_ANY) {}
