// concat, split and their kind: one tensor and its parts along an axis.
#include "../cuda/columns.h"
#include "views.h"

namespace nvgpu {
namespace {

// The parts of a tensor cut along `axis`, in rows of all axes before it.
std::vector<Columns> ColumnsOf(const std::vector<const DenseTensor*>& parts, int64_t rows) {
  std::vector<Columns> columns;
  int64_t offset = 0;
  for (const DenseTensor* part : parts) {
    if (part->numel() == 0) continue;
    int64_t width = part->numel() / rows;
    columns.push_back({const_cast<void*>(part->data()), width, offset});
    offset += width;
  }
  return columns;
}

void Join(const CustomContext& ctx, const std::vector<const DenseTensor*>& parts, int axis, DenseTensor* whole) {
  if (whole->numel() == 0) return;
  int64_t rows = Count(whole->dims(), 0, axis);
  JoinColumns(SizeOf(*whole), rows, whole->numel() / rows, ColumnsOf(parts, rows), whole->data(), StreamOf(ctx));
}

template <typename T>
void Split(const CustomContext& ctx, const DenseTensor& whole, int axis, const std::vector<DenseTensor*>& parts) {
  for (DenseTensor* part : parts) ctx.template Alloc<T>(part);
  if (whole.numel() == 0) return;
  int64_t rows = Count(whole.dims(), 0, axis);
  std::vector<Columns> columns = ColumnsOf({parts.begin(), parts.end()}, rows);
  SplitColumns(SizeOf(whole), rows, whole.numel() / rows, columns, whole.data(), StreamOf(ctx));
}

}  // namespace

template <typename T, typename Context>
void ConcatKernel(const Context& ctx, const std::vector<const DenseTensor*>& x, const Scalar& axis, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Join(ctx, x, Axis(axis.to<int>(), out->dims().size()), out);
}

template <typename T, typename Context>
void StackKernel(const Context& ctx, const std::vector<const DenseTensor*>& x, int axis, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Join(ctx, x, Axis(axis, out->dims().size()), out);
}

template <typename T, typename Context>
void SplitKernel(const Context& ctx, const DenseTensor& x, const IntArray&, const Scalar& axis,
                 std::vector<DenseTensor*> out) {
  Split<T>(ctx, x, Axis(axis.to<int>(), x.dims().size()), out);
}

template <typename T, typename Context>
void SplitWithNumKernel(const Context& ctx, const DenseTensor& x, int, const Scalar& axis,
                        std::vector<DenseTensor*> out) {
  Split<T>(ctx, x, Axis(axis.to<int>(), x.dims().size()), out);
}

template <typename T, typename Context>
void UnStackKernel(const Context& ctx, const DenseTensor& x, int axis, int, std::vector<DenseTensor*> out) {
  Split<T>(ctx, x, Axis(axis, x.dims().size()), out);
}

template <typename T, typename Context>
void UnbindKernel(const Context& ctx, const DenseTensor& x, int axis, std::vector<DenseTensor*> out) {
  Split<T>(ctx, x, Axis(axis, x.dims().size()), out);
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(concat, nvgpu, ALL_LAYOUT, nvgpu::ConcatKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(stack, nvgpu, ALL_LAYOUT, nvgpu::StackKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(split, nvgpu, ALL_LAYOUT, nvgpu::SplitKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(split_with_num, nvgpu, ALL_LAYOUT, nvgpu::SplitWithNumKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(unstack, nvgpu, ALL_LAYOUT, nvgpu::UnStackKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(unbind, nvgpu, ALL_LAYOUT, nvgpu::UnbindKernel, NVGPU_ANY) {}
