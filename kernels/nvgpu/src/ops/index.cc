// Ops that read or write where tensors of ids say. What ids outside their axis do is said in ../cuda/gather.h.
#include <algorithm>

#include "../cuda/gather.h"
#include "../cuda/copy.h"
#include "views.h"

namespace nvgpu {
namespace {

void AppendAxis(Indexed* at, int64_t dim, int64_t x, int64_t y, int64_t ids) {
  PADDLE_ENFORCE_LT(at->rank, kMaxRank, common::errors::InvalidArgument("nvgpu: at most %d axes", kMaxRank));
  at->dims[at->rank] = dim;
  at->x[at->rank] = x;
  at->y[at->rank] = y;
  at->ids[at->rank++] = ids;
}

void AppendIds(Indexed* at, const void* ids, int64_t size, int64_t stride) {
  PADDLE_ENFORCE_LT(at->tensors, kMaxRank, common::errors::InvalidArgument("nvgpu: at most %d indices", kMaxRank));
  at->id[at->tensors] = ids;
  at->size[at->tensors] = size;
  at->stride[at->tensors++] = stride;
}

// y[outer, ids, inner] and x[outer, ids[...], inner]: whole rows of x along one axis.
Indexed Rows(const DDim& dims, int axis, const DenseTensor& ids) {
  int64_t inner = Count(dims, axis + 1, dims.size()), outer = Count(dims, 0, axis);
  Indexed at;
  AppendAxis(&at, outer, dims[axis] * inner, ids.numel() * inner, 0);
  AppendAxis(&at, ids.numel(), 0, inner, 1);
  AppendAxis(&at, inner, 1, 1, 0);
  AppendIds(&at, ids.data(), dims[axis], inner);
  at.id_type = DtypeOf(ids);
  return at;
}

// y[..., inner] and x[ids[..., 0], ids[..., 1], ..., inner]: the last axis of ids counts the axes of x it chooses from.
Indexed Points(const DDim& dims, const DenseTensor& ids) {
  int depth = static_cast<int>(ids.dims()[ids.dims().size() - 1]);
  Strided x = ContiguousOf(dims);
  int64_t inner = Count(dims, depth, dims.size());
  Indexed at;
  AppendAxis(&at, Count(ids.dims(), 0, ids.dims().size() - 1), 0, inner, depth);
  AppendAxis(&at, inner, 1, 1, 0);
  at.id_type = DtypeOf(ids);
  int64_t bytes = SizeOf(ids);
  for (int k = 0; k < depth; ++k) AppendIds(&at, At(ids.data(), k * bytes), x.dims[k], x.strides[k]);
  return at;
}

// y[i, j, k] and x[i, ids[i, j, k], k] for axis 1; `y` is how the other tensor runs along the axes of ids.
Indexed Along(const DDim& dims, int axis, const DenseTensor& ids, const Strided& y) {
  Strided x = ContiguousOf(dims), own = ContiguousOf(ids.dims());
  Indexed at;
  for (int i = 0; i < own.rank; ++i) {
    AppendAxis(&at, own.dims[i], i == axis ? 0 : x.strides[i], y.strides[i], own.strides[i]);
  }
  AppendIds(&at, ids.data(), dims[axis], x.strides[axis]);
  at.id_type = DtypeOf(ids);
  return at;
}

// Makes what is written (or read) one element for all.
Indexed Scalars(Indexed at) {
  std::fill(at.y, at.y + at.rank, 0);
  return at;
}

// The element `value` on the device.
template <typename T>
DenseTensor OnDevice(const CustomContext& ctx, T value) {
  DenseTensor one;
  one.Resize(common::make_ddim({1}));
  ctx.template Alloc<T>(&one);
  Fill(sizeof(T), &value, one.data(), 1, StreamOf(ctx));
  return one;
}

template <typename T>
void Clear(const CustomContext& ctx, const Indexed& at, DenseTensor* out) {
  DenseTensor zero = OnDevice<T>(ctx, static_cast<T>(0));
  WriteIndexed(sizeof(T), Scalars(at), zero.data(), out->data(), StreamOf(ctx));
}

template <typename T>
void ReadTo(const CustomContext& ctx, const DenseTensor& x, const Indexed& at, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  ReadIndexed(sizeof(T), at, x.data(), out->data(), StreamOf(ctx));
}

// out = x, with y written or added.
template <typename T>
void Change(const CustomContext& ctx, const DenseTensor& x, const Indexed& at, const DenseTensor& y, bool adds,
            DenseTensor* out) {
  ctx.template Alloc<T>(out);
  CopyWhole(ctx, x, out);
  if (adds) {
    AddIndexed(DtypeOf(*out), at, y.data(), out->data(), StreamOf(ctx));
  } else {
    WriteIndexed(sizeof(T), at, y.data(), out->data(), StreamOf(ctx));
  }
}

}  // namespace

template <typename T, typename Context>
void EmbeddingKernel(const Context& ctx, const DenseTensor& ids, const DenseTensor& weight, int64_t padding_idx,
                     DenseTensor* out) {
  Indexed at = Rows(weight.dims(), 0, ids);
  if (padding_idx != -1) at.zero_id = padding_idx;  // -1: none
  ReadTo<T>(ctx, weight, at, out);
}

template <typename T, typename Context>
void GatherKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, const Scalar& axis,
                  DenseTensor* out) {
  ReadTo<T>(ctx, x, Rows(x.dims(), Axis(axis.to<int>(), x.dims().size()), ids), out);
}

template <typename T, typename Context>
void IndexSelectKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, int dim, DenseTensor* out) {
  ReadTo<T>(ctx, x, Rows(x.dims(), Axis(dim, x.dims().size()), ids), out);
}

template <typename T, typename Context>
void GatherNdKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, DenseTensor* out) {
  ReadTo<T>(ctx, x, Points(x.dims(), ids), out);
}

template <typename T, typename Context>
void IndexSampleKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, DenseTensor* out) {
  ReadTo<T>(ctx, x, Along(x.dims(), 1, ids, ContiguousOf(ids.dims())), out);
}

template <typename T, typename Context>
void TakeAlongAxisKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, int axis, DenseTensor* out) {
  out->Resize(ids.dims());
  ReadTo<T>(ctx, x, Along(x.dims(), Axis(axis, x.dims().size()), ids, ContiguousOf(ids.dims())), out);
}

template <typename T, typename Context>
void PutAlongAxisKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, const DenseTensor& value,
                        int axis, const std::string& reduce, bool include_self, DenseTensor* out) {
  PADDLE_ENFORCE_EQ(reduce == "assign" || reduce == "add", true,
                    common::errors::Unimplemented("nvgpu: put_along_axis, reduce '%s': only assign and add", reduce));
  Indexed at = Along(x.dims(), Axis(axis, x.dims().size()), ids, BroadcastOf(value.dims(), ids.dims()));
  ctx.template Alloc<T>(out);
  CopyWhole(ctx, x, out);
  if (reduce == "add" && !include_self) Clear<T>(ctx, at, out);
  Change<T>(ctx, *out, at, value, reduce == "add", out);
}

// Rows of out at ids: the updates, or (overwrite false) the sum of the updates of each.
template <typename T, typename Context>
void ScatterKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, const DenseTensor& updates,
                   bool overwrite, DenseTensor* out) {
  Indexed at = Rows(x.dims(), 0, ids);
  ctx.template Alloc<T>(out);
  CopyWhole(ctx, x, out);
  if (!overwrite) Clear<T>(ctx, at, out);
  Change<T>(ctx, *out, at, updates, !overwrite, out);
}

template <typename T, typename Context>
void ScatterNdAddKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, const DenseTensor& updates,
                        DenseTensor* out) {
  Change<T>(ctx, x, Points(x.dims(), ids), updates, true, out);
}

template <typename T, typename Context>
void IndexAddKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& ids, const DenseTensor& value,
                    int axis, DenseTensor* out) {
  Change<T>(ctx, x, Rows(x.dims(), Axis(axis, x.dims().size()), ids), value, true, out);
}

}  // namespace nvgpu

#define NVGPU_ADDED float, double, int, int64_t, nvgpu::fp16, nvgpu::bf16

PD_REGISTER_PLUGIN_KERNEL(embedding, nvgpu, ALL_LAYOUT, nvgpu::EmbeddingKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(gather, nvgpu, ALL_LAYOUT, nvgpu::GatherKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(index_select, nvgpu, ALL_LAYOUT, nvgpu::IndexSelectKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(gather_nd, nvgpu, ALL_LAYOUT, nvgpu::GatherNdKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(index_sample, nvgpu, ALL_LAYOUT, nvgpu::IndexSampleKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(take_along_axis, nvgpu, ALL_LAYOUT, nvgpu::TakeAlongAxisKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(put_along_axis, nvgpu, ALL_LAYOUT, nvgpu::PutAlongAxisKernel, NVGPU_ADDED) {}
PD_REGISTER_PLUGIN_KERNEL(scatter, nvgpu, ALL_LAYOUT, nvgpu::ScatterKernel, NVGPU_ADDED) {}
PD_REGISTER_PLUGIN_KERNEL(scatter_nd_add, nvgpu, ALL_LAYOUT, nvgpu::ScatterNdAddKernel, NVGPU_ADDED) {}
PD_REGISTER_PLUGIN_KERNEL(index_add, nvgpu, ALL_LAYOUT, nvgpu::IndexAddKernel, NVGPU_ADDED) {}
