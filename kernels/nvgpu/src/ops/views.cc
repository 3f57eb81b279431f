#include "views.h"

#include <algorithm>

namespace nvgpu {
namespace {

// A bound of a slice, in [low, high].
int64_t Bound(int64_t at, int64_t dim, int64_t low, int64_t high) {
  if (at < 0) at += dim;
  return std::max(low, std::min(high, at));
}

}  // namespace

View SliceOf(const DDim& dims, const std::vector<int64_t>& axes, const std::vector<int64_t>& starts,
             const std::vector<int64_t>& ends, const std::vector<int64_t>& steps) {
  View view;
  view.axes = ContiguousOf(dims);
  for (size_t i = 0; i < axes.size(); ++i) {
    int axis = Axis(axes[i], dims.size());
    int64_t dim = dims[axis], step = steps.empty() ? 1 : steps[i];
    PADDLE_ENFORCE_NE(step, 0, common::errors::InvalidArgument("nvgpu: the step of a slice is 0"));
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? dim : dim - 1;  // backwards, -1 is the end past the first
    int64_t start = Bound(starts[i], dim, low, high), end = Bound(ends[i], dim, low, high);
    int64_t count = step > 0 ? (end - start + step - 1) / step : (start - end - step - 1) / -step;
    view.axes.dims[axis] = std::max<int64_t>(count, 0);
    view.offset += start * view.axes.strides[axis];
    view.axes.strides[axis] *= step;
  }
  return view;
}

Strided Without(const Strided& axes, const std::vector<int64_t>& dropped) {
  Strided left;
  for (int i = 0; i < axes.rank; ++i) {
    if (std::find(dropped.begin(), dropped.end(), i) == dropped.end()) Append(&left, axes.dims[i], axes.strides[i]);
  }
  return left;
}

DDim DimsOf(const Strided& axes) { return common::make_ddim(std::vector<int64_t>(axes.dims, axes.dims + axes.rank)); }

void CopyWhole(const CustomContext& ctx, const DenseTensor& x, DenseTensor* out) {
  if (x.data() == out->data() || x.numel() == 0) return;
  size_t bytes = static_cast<size_t>(x.numel() * SizeOf(x));
  cudaError_t e = cudaMemcpyAsync(out->data(), x.data(), bytes, cudaMemcpyDeviceToDevice, StreamOf(ctx));
  PADDLE_ENFORCE_EQ(e, cudaSuccess, common::errors::External("nvgpu: copy: %s", cudaGetErrorString(e)));
}

}  // namespace nvgpu
