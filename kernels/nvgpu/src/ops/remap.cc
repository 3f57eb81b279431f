// pad, tile, roll, tril and triu.
#include "../cuda/remap.h"

#include "views.h"

namespace nvgpu {
namespace {

// Axes with nothing added; `dims` may have fewer axes than the window, whose first are then of size 1.
Window WindowOf(const DDim& dims, int rank) {
  PADDLE_ENFORCE_LE(rank, kMaxRank, common::errors::InvalidArgument("nvgpu: at most %d axes", kMaxRank));
  Window window;
  window.rank = rank;
  for (int i = 0; i < rank; ++i) {
    int own = i - (rank - dims.size());
    window.from[i] = window.to[i] = own < 0 ? 1 : dims[own];
    window.before[i] = 0;
  }
  return window;
}

void Pad(Window* window, int axis, int64_t before, int64_t after) {
  window->before[axis] = before;
  window->to[axis] = window->from[axis] + before + after;
}

DDim DimsOf(const Window& window) {
  return common::make_ddim(std::vector<int64_t>(window.to, window.to + window.rank));
}

template <typename T>
void Copy(const CustomContext& ctx, const DenseTensor& x, Border border, const Window& window, T outside,
          DenseTensor* out) {
  ctx.template Alloc<T>(out);
  CopyWindow(sizeof(T), border, window, &outside, x.data(), out->data(), StreamOf(ctx));
}

Border BorderOf(const std::string& mode) {
  if (mode == "constant") return Border::kConstant;
  if (mode == "reflect") return Border::kReflect;
  if (mode == "replicate") return Border::kReplicate;
  if (mode == "circular") return Border::kCircular;
  PADDLE_THROW(common::errors::InvalidArgument("nvgpu: pad mode '%s'; known are constant, reflect, replicate, circular",
                                               mode));
}

}  // namespace

// paddings: before and after, of the first axis first.
template <typename T, typename Context>
void PadKernel(const Context& ctx, const DenseTensor& x, const std::vector<int>& paddings, const Scalar& value,
               DenseTensor* out) {
  Window window = WindowOf(x.dims(), x.dims().size());
  for (int i = 0; i < window.rank; ++i) Pad(&window, i, paddings[2 * i], paddings[2 * i + 1]);
  out->Resize(DimsOf(window));
  Copy<T>(ctx, x, Border::kConstant, window, value.to<T>(), out);
}

// Images [N, C, D, H, W] or [N, D, H, W, C]; paddings: before and after, of W first, then of H and D.
template <typename T, typename Context>
void Pad3dKernel(const Context& ctx, const DenseTensor& x, const IntArray& paddings, const std::string& mode,
                 double value, const std::string& format, DenseTensor* out) {
  Window window = WindowOf(x.dims(), 5);
  const std::vector<int64_t>& pads = paddings.GetData();
  int width = format == "NDHWC" ? 3 : 4;
  for (int i = 0; i < 3; ++i) Pad(&window, width - i, pads[2 * i], pads[2 * i + 1]);
  out->Resize(DimsOf(window));
  Copy<T>(ctx, x, BorderOf(mode), window, static_cast<T>(value), out);
}

template <typename T, typename Context>
void TileKernel(const Context& ctx, const DenseTensor& x, const IntArray& repeat_times, DenseTensor* out) {
  const std::vector<int64_t>& repeats = repeat_times.GetData();
  int count = static_cast<int>(repeats.size());
  Window window = WindowOf(x.dims(), std::max(x.dims().size(), count));
  for (int i = 0; i < count; ++i) window.to[window.rank - count + i] *= repeats[i];
  out->Resize(DimsOf(window));
  Copy<T>(ctx, x, Border::kCircular, window, T{}, out);
}

// Without axes the tensor is rolled as one vector.
template <typename T, typename Context>
void RollKernel(const Context& ctx, const DenseTensor& x, const IntArray& shifts, const std::vector<int64_t>& axes,
                DenseTensor* out) {
  bool flat = axes.empty();
  Window window = flat ? WindowOf(common::make_ddim({x.numel()}), 1) : WindowOf(x.dims(), x.dims().size());
  for (size_t i = 0; i < (flat ? 1 : axes.size()); ++i) {
    int axis = flat ? 0 : Axis(axes[i], window.rank);
    int64_t dim = std::max<int64_t>(window.from[axis], 1);
    window.before[axis] = (window.before[axis] + shifts.GetData()[i] % dim) % dim;
  }
  Copy<T>(ctx, x, Border::kCircular, window, T{}, out);
}

template <typename T, typename Context>
void Triangle(const Context& ctx, const DenseTensor& x, int diagonal, bool lower, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  int rank = x.dims().size();
  CopyTriangle(sizeof(T), x.numel(), x.dims()[rank - 2], x.dims()[rank - 1], diagonal, lower, x.data(), out->data(),
               StreamOf(ctx));
}

template <typename T, typename Context>
void TrilKernel(const Context& ctx, const DenseTensor& x, int diagonal, DenseTensor* out) {
  Triangle<T>(ctx, x, diagonal, true, out);
}

template <typename T, typename Context>
void TriuKernel(const Context& ctx, const DenseTensor& x, int diagonal, DenseTensor* out) {
  Triangle<T>(ctx, x, diagonal, false, out);
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(pad, nvgpu, ALL_LAYOUT, nvgpu::PadKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(pad3d, nvgpu, ALL_LAYOUT, nvgpu::Pad3dKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(tile, nvgpu, ALL_LAYOUT, nvgpu::TileKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(roll, nvgpu, ALL_LAYOUT, nvgpu::RollKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(tril, nvgpu, ALL_LAYOUT, nvgpu::TrilKernel, NVGPU_ANY) {}
PD_REGISTER_PLUGIN_KERNEL(triu, nvgpu, ALL_LAYOUT, nvgpu::TriuKernel, NVGPU_ANY) {}
