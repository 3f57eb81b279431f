// Slices read and assigned. (With FLAGS_use_stride_kernel, Paddle's own views replace slice and strided_slice.)
#include <algorithm>
#include <memory>

#include "../cuda/copy.h"
#include "views.h"

namespace nvgpu {
namespace {

// out = the view of x, without the axes dropped.
template <typename T>
void CopyView(const CustomContext& ctx, const DenseTensor& x, const View& view, const std::vector<int64_t>& dropped,
              DenseTensor* out) {
  out->Resize(DimsOf(Without(view.axes, dropped)));
  ctx.template Alloc<T>(out);
  if (out->numel() == 0) return;
  const void* first = At(x.data(), view.offset * SizeOf(x));
  CopyStrided(SizeOf(x), view.axes, ContiguousOf(DimsOf(view.axes)), first, out->data(), StreamOf(ctx));
}

std::vector<int64_t> Wide(const std::vector<int>& values) { return {values.begin(), values.end()}; }

// Static graphs write x[-1] as [-1, 0) where a dropped axis has that end inferred: it means the last element.
void EndAtLast(const DDim& dims, const std::vector<int64_t>& axes, const std::vector<int64_t>& starts,
               const std::vector<int64_t>& infer_flags, const std::vector<int64_t>& dropped,
               std::vector<int64_t>* ends) {
  for (size_t i = 0; i < axes.size(); ++i) {
    bool inferred = i < infer_flags.size() && infer_flags[i] == -1;
    bool drops = std::find(dropped.begin(), dropped.end(), axes[i]) != dropped.end();
    if (starts[i] == -1 && (*ends)[i] == 0 && inferred && drops) (*ends)[i] = dims[axes[i]];
  }
}

// The axes that an assigned value is matched with: those of the slice, less the dropped ones, plus new ones of size 1
// (`none_axes` are where None stood in x[..., None] = value, counted as the slice's own axes).
Strided AssignedAxes(const Strided& slice, const std::vector<int64_t>& dropped, const std::vector<int64_t>& none_axes) {
  Strided axes;
  size_t none = 0;
  for (int i = 0; i < slice.rank; ++i) {
    for (; none < none_axes.size() && none_axes[none] <= i; ++none) Append(&axes, 1, 0);
    bool drops = std::find(dropped.begin(), dropped.end(), i) != dropped.end();
    if (!drops) Append(&axes, slice.dims[i], slice.strides[i]);
  }
  for (; none < none_axes.size(); ++none) Append(&axes, 1, 0);
  return axes;
}

// A value's dims without leading ones beyond the rank it is assigned to.
DDim Trimmed(const DDim& dims, int rank) {
  int extra = std::max(dims.size() - rank, 0);
  PADDLE_ENFORCE_EQ(Count(dims, 0, extra), 1,
                    common::errors::InvalidArgument("nvgpu: a value of shape [%s] has too many axes for the slice that "
                                                    "it is assigned to, which has %d", dims, rank));
  std::vector<int64_t> left;
  for (int i = extra; i < dims.size(); ++i) left.push_back(dims[i]);
  return common::make_ddim(left);
}

void CheckBroadcast(const DDim& from, const DDim& to) {
  for (int i = 1; i <= from.size(); ++i) {
    int64_t dim = from[from.size() - i];
    PADDLE_ENFORCE_EQ(dim == 1 || dim == to[to.size() - i], true,
                      common::errors::InvalidArgument("nvgpu: a value of shape [%s] cannot be assigned to a slice of "
                                                      "shape [%s]", from, to));
  }
}

void Assign(const CustomContext& ctx, const DenseTensor& value, const View& view, const std::vector<int64_t>& dropped,
            const std::vector<int64_t>& none_axes, DenseTensor* out) {
  if (view.axes.numel() == 0) return;
  Strided to = AssignedAxes(view.axes, dropped, none_axes);
  DDim dims = Trimmed(value.dims(), to.rank);
  CheckBroadcast(dims, DimsOf(to));
  void* first = At(out->data(), view.offset * SizeOf(*out));
  CopyStrided(SizeOf(*out), BroadcastOf(dims, DimsOf(to)), to, value.data(), first, StreamOf(ctx));
}

// Values given as numbers, on the device.
template <typename T>
void ToDevice(const CustomContext& ctx, const std::vector<Scalar>& values, DenseTensor* tensor) {
  ctx.template Alloc<T>(tensor);
  std::unique_ptr<T[]> host(new T[values.size()]);  // (a vector of bool has no elements to copy)
  for (size_t i = 0; i < values.size(); ++i) host[i] = values[i].to<T>();
  bool one = values.size() == 1;
  if (one) Fill(sizeof(T), host.get(), tensor->data(), tensor->numel(), StreamOf(ctx));
  if (!one) Upload(host.get(), tensor->data(), tensor->numel() * sizeof(T), StreamOf(ctx));
}

}  // namespace

template <typename T, typename Context>
void SliceKernel(const Context& ctx, const DenseTensor& x, const std::vector<int64_t>& axes, const IntArray& starts,
                 const IntArray& ends, const std::vector<int64_t>& infer_flags,
                 const std::vector<int64_t>& decrease_axis, DenseTensor* out) {
  std::vector<int64_t> stops = ends.GetData();
  EndAtLast(x.dims(), axes, starts.GetData(), infer_flags, decrease_axis, &stops);
  CopyView<T>(ctx, x, SliceOf(x.dims(), axes, starts.GetData(), stops, {}), decrease_axis, out);
}

template <typename T, typename Context>
void StridedSliceKernel(const Context& ctx, const DenseTensor& x, const std::vector<int>& axes, const IntArray& starts,
                        const IntArray& ends, const IntArray& strides, DenseTensor* out) {
  View view = SliceOf(x.dims(), Wide(axes), starts.GetData(), ends.GetData(), strides.GetData());
  CopyView<T>(ctx, x, view, {}, out);
}

template <typename T, typename Context>
void SetTensorValueKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& value, const IntArray& starts,
                          const IntArray& ends, const IntArray& steps, const std::vector<int64_t>& axes,
                          const std::vector<int64_t>& decrease_axes, const std::vector<int64_t>& none_axes,
                          DenseTensor* out) {
  ctx.template Alloc<T>(out);
  CopyWhole(ctx, x, out);
  View view = SliceOf(x.dims(), axes, starts.GetData(), ends.GetData(), steps.GetData());
  Assign(ctx, value, view, decrease_axes, none_axes, out);
}

template <typename T, typename Context>
void SetValueKernel(const Context& ctx, const DenseTensor& x, const IntArray& starts, const IntArray& ends,
                    const IntArray& steps, const std::vector<int64_t>& axes, const std::vector<int64_t>& decrease_axes,
                    const std::vector<int64_t>& none_axes, const std::vector<int64_t>& shape,
                    const std::vector<Scalar>& values, DenseTensor* out) {
  DenseTensor value;
  value.Resize(common::make_ddim(shape));
  ToDevice<T>(ctx, values, &value);
  SetTensorValueKernel<T, Context>(ctx, x, value, starts, ends, steps, axes, decrease_axes, none_axes, out);
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(slice, nvgpu, ALL_LAYOUT, nvgpu::SliceKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(strided_slice, nvgpu, ALL_LAYOUT, nvgpu::StridedSliceKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(set_value, nvgpu, ALL_LAYOUT, nvgpu::SetValueKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(set_value_with_tensor, nvgpu, ALL_LAYOUT, nvgpu::SetTensorValueKernel, NVGPU_ANY) {}
