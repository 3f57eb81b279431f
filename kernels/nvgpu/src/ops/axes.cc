// Ops that reorder or repeat whole axes: the result, seen over the right axes, is a strided copy of the input.
#include <algorithm>

#include "../cuda/copy.h"
#include "views.h"

namespace nvgpu {
namespace {

void Copy(const CustomContext& ctx, const DenseTensor& x, const Strided& from, const Strided& to, DenseTensor* out,
          int64_t offset = 0) {
  CopyStrided(SizeOf(x), from, to, At(x.data(), offset * SizeOf(x)), out->data(), StreamOf(ctx));
}

// Row-major strides over the dims of other axes.
Strided Dense(const Strided& axes) { return ContiguousOf(DimsOf(axes)); }

template <typename T>
void Broadcast(const CustomContext& ctx, const DenseTensor& x, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Copy(ctx, x, BroadcastOf(x.dims(), out->dims()), ContiguousOf(out->dims()), out);
}

// x's dims where `shape` leaves them as they are (-1), and its own elsewhere.
DDim Expanded(const DDim& dims, const std::vector<int64_t>& shape) {
  std::vector<int64_t> to(shape);
  int64_t missing = static_cast<int64_t>(shape.size()) - dims.size();
  PADDLE_ENFORCE_GE(missing, 0, common::errors::InvalidArgument("nvgpu: expand of shape [%s] to fewer axes", dims));
  for (size_t i = missing; i < to.size(); ++i) {
    int64_t dim = dims[i - missing];
    if (to[i] == -1) to[i] = dim;
    PADDLE_ENFORCE_EQ(dim == 1 || dim == to[i], true,
                      common::errors::InvalidArgument("nvgpu: expand of shape [%s]: its axis %d cannot become %d", dims,
                                                      i - missing, to[i]));
  }
  return common::make_ddim(to);
}

// [n, h, w, c] with c's axes in front (NCHW) or behind (NHWC).
struct Image {
  int64_t n, h, w, c;
  bool channels_last;
  Image(const DDim& dims, const std::string& format) : n(dims[0]), channels_last(format == "NHWC") {
    c = channels_last ? dims[3] : dims[1];
    h = channels_last ? dims[1] : dims[2];
    w = channels_last ? dims[2] : dims[3];
  }
};

// The axes of a contiguous tensor of these dims, in another order.
Strided Permuted(const std::vector<int64_t>& dims, const std::vector<int>& order) {
  Strided own = ContiguousOf(common::make_ddim(dims)), axes;
  for (int axis : order) Append(&axes, own.dims[axis], own.strides[axis]);
  return axes;
}

}  // namespace

template <typename T, typename Context>
void TransposeKernel(const Context& ctx, const DenseTensor& x, const std::vector<int>& axis, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  std::vector<int> order;
  for (int one : axis) order.push_back(Axis(one, x.dims().size()));
  Copy(ctx, x, Permuted(common::vectorize<int64_t>(x.dims()), order), ContiguousOf(out->dims()), out);
}

// Where Paddle's own views are off: the same elements, in dims that Paddle has set.
template <typename T, typename Context>
void SqueezeKernel(const Context& ctx, const DenseTensor& x, const IntArray&, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  CopyWhole(ctx, x, out);
}

template <typename T, typename Context>
void UnsqueezeKernel(const Context& ctx, const DenseTensor& x, const IntArray&, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  CopyWhole(ctx, x, out);
}

// Of a static program, which has no views. Paddle's own kernel for custom devices lacks half precision.
template <typename T, typename Context>
void FlattenKernel(const Context& ctx, const DenseTensor& x, int, int, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  CopyWhole(ctx, x, out);
}

template <typename T, typename Context>
void ExpandKernel(const Context& ctx, const DenseTensor& x, const IntArray& shape, DenseTensor* out) {
  out->Resize(Expanded(x.dims(), shape.GetData()));
  Broadcast<T>(ctx, x, out);
}

template <typename T, typename Context>
void ExpandAsKernel(const Context& ctx, const DenseTensor& x, const paddle::optional<DenseTensor>& y,
                    const std::vector<int64_t>& target_shape, DenseTensor* out) {
  out->Resize(Expanded(x.dims(), y ? common::vectorize<int64_t>(y->dims()) : target_shape));
  Broadcast<T>(ctx, x, out);
}

template <typename T, typename Context>
void BroadcastTensorsKernel(const Context& ctx, const std::vector<const DenseTensor*>& x,
                            std::vector<DenseTensor*> out) {
  for (size_t i = 0; i < x.size(); ++i) Broadcast<T>(ctx, *x[i], out[i]);
}

// Input i, a vector (or one number), runs along axis i of every result.
template <typename T, typename Context>
void MeshgridKernel(const Context& ctx, const std::vector<const DenseTensor*>& x, std::vector<DenseTensor*> out) {
  for (size_t i = 0; i < x.size(); ++i) {
    ctx.template Alloc<T>(out[i]);
    Strided to = ContiguousOf(out[i]->dims()), from = to;
    for (int axis = 0; axis < from.rank; ++axis) from.strides[axis] = axis == static_cast<int>(i) ? 1 : 0;
    Copy(ctx, *x[i], from, to, out[i]);
  }
}

template <typename T, typename Context>
void FlipKernel(const Context& ctx, const DenseTensor& x, const std::vector<int>& axis, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Strided from = ContiguousOf(x.dims());
  int64_t offset = 0;
  std::vector<bool> flipped(from.rank, false);
  for (int one : axis) flipped[Axis(one, from.rank)] = true;
  for (int i = 0; i < from.rank; ++i) {
    if (!flipped[i]) continue;
    offset += (from.dims[i] - 1) * from.strides[i];
    from.strides[i] = -from.strides[i];
  }
  Copy(ctx, x, from, ContiguousOf(x.dims()), out, offset);
}

template <typename T, typename Context>
void RepeatInterleaveKernel(const Context& ctx, const DenseTensor& x, int repeats, int dim, int64_t,
                            DenseTensor* out) {
  ctx.template Alloc<T>(out);
  int axis = Axis(dim, x.dims().size());
  int64_t inner = Count(x.dims(), axis + 1, x.dims().size());
  Strided from;
  Append(&from, Count(x.dims(), 0, axis + 1), inner);
  Append(&from, repeats, 0);
  Append(&from, inner, 1);
  Copy(ctx, x, from, Dense(from), out);
}

template <typename T, typename Context>
void PixelShuffleKernel(const Context& ctx, const DenseTensor& x, int factor, const std::string& format,
                        DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Image image(x.dims(), format);
  int64_t r = factor, c = image.c / (r * r);
  Strided from = image.channels_last ? Permuted({image.n, image.h, image.w, c, r, r}, {0, 1, 4, 2, 5, 3})
                                     : Permuted({image.n, c, r, r, image.h, image.w}, {0, 1, 4, 2, 5, 3});
  Copy(ctx, x, from, Dense(from), out);
}

template <typename T, typename Context>
void PixelUnshuffleKernel(const Context& ctx, const DenseTensor& x, int factor, const std::string& format,
                          DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Image image(x.dims(), format);
  int64_t r = factor, h = image.h / r, w = image.w / r;
  Strided from = image.channels_last ? Permuted({image.n, h, r, w, r, image.c}, {0, 1, 3, 5, 2, 4})
                                     : Permuted({image.n, image.c, h, r, w, r}, {0, 1, 3, 5, 2, 4});
  Copy(ctx, x, from, Dense(from), out);
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(transpose, nvgpu, ALL_LAYOUT, nvgpu::TransposeKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(squeeze, nvgpu, ALL_LAYOUT, nvgpu::SqueezeKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(unsqueeze, nvgpu, ALL_LAYOUT, nvgpu::UnsqueezeKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(flatten, nvgpu, ALL_LAYOUT, nvgpu::FlattenKernel, nvgpu::bf16, nvgpu::fp16) {}
PD_REGISTER_PLUGIN_KERNEL(expand, nvgpu, ALL_LAYOUT, nvgpu::ExpandKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(expand_as, nvgpu, ALL_LAYOUT, nvgpu::ExpandAsKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(broadcast_tensors, nvgpu, ALL_LAYOUT, nvgpu::BroadcastTensorsKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(meshgrid, nvgpu, ALL_LAYOUT, nvgpu::MeshgridKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(flip, nvgpu, ALL_LAYOUT, nvgpu::FlipKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(repeat_interleave, nvgpu, ALL_LAYOUT, nvgpu::RepeatInterleaveKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(pixel_shuffle, nvgpu, ALL_LAYOUT, nvgpu::PixelShuffleKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(pixel_unshuffle, nvgpu, ALL_LAYOUT, nvgpu::PixelUnshuffleKernel, NVGPU_ANY) {}
