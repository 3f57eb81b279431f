// nearest_interp and bilinear_interp of 4-D images.
#include "../cuda/interp.h"

#include "views.h"

namespace nvgpu {
namespace {

using Tensors = paddle::optional<std::vector<const DenseTensor*>>;

struct Size {
  int64_t h, w;
  double scale_h = 0, scale_w = 0;  // 0 where the size was given, not the scale
};

int64_t Number(const DenseTensor& tensor) { return Scalar(tensor).to<int64_t>(); }

// Of all the ways to give the size, in Paddle's order: tensors of one number, one tensor, a scale, numbers.
Size SizeOfResult(const DenseTensor& x, int64_t in_h, int64_t in_w, const paddle::optional<DenseTensor>& out_size,
                  const Tensors& size_tensor, const paddle::optional<DenseTensor>& scale_tensor, int out_h, int out_w,
                  const std::vector<double>& scale) {
  Size size{out_h, out_w};
  if (size_tensor && size_tensor->size() > 0) return {Number(*size_tensor->at(0)), Number(*size_tensor->at(1))};
  std::vector<double> scales = scale;
  if (scale_tensor) scales = {Scalar(*scale_tensor).to<double>()};
  if (!scales.empty() && scales[0] > 0) {
    size.scale_h = scales[0];
    size.scale_w = scales.size() > 1 ? scales[1] : scales[0];
    size.h = static_cast<int64_t>(in_h * size.scale_h);
    size.w = static_cast<int64_t>(in_w * size.scale_w);
  }
  if (out_size) {
    std::vector<int64_t> given = IntArray(*out_size).GetData();
    return {given[0], given[1]};
  }
  return size;
}

// Pixels of the source for one of the result.
float Ratio(int64_t in, int64_t out, bool align_corners, double scale) {
  if (align_corners) return out > 1 ? static_cast<float>(in - 1) / (out - 1) : 0.0f;
  return scale > 0 ? static_cast<float>(1.0 / scale) : static_cast<float>(in) / out;
}

Resize ResizeOf(const DenseTensor& x, bool channels_last, const Size& size, bool align_corners, int align_mode) {
  Resize r;
  const DDim& dims = x.dims();
  r.planes = channels_last ? dims[0] : dims[0] * dims[1];
  r.channels = channels_last ? static_cast<int>(dims[3]) : 1;
  r.in_h = static_cast<int>(dims[channels_last ? 1 : 2]);
  r.in_w = static_cast<int>(dims[channels_last ? 2 : 3]);
  r.out_h = static_cast<int>(size.h);
  r.out_w = static_cast<int>(size.w);
  r.ratio_h = Ratio(r.in_h, r.out_h, align_corners, size.scale_h);
  r.ratio_w = Ratio(r.in_w, r.out_w, align_corners, size.scale_w);
  r.align_corners = align_corners;
  r.half_pixel = align_mode == 0 && !align_corners;
  return r;
}

DDim ResultDims(const DDim& dims, bool channels_last, const Size& size) {
  if (channels_last) return common::make_ddim({dims[0], size.h, size.w, dims[3]});
  return common::make_ddim({dims[0], dims[1], size.h, size.w});
}

template <typename T>
Resize Prepare(const CustomContext& ctx, const DenseTensor& x, const Size& size, const std::string& layout,
               bool align_corners, int align_mode, DenseTensor* out) {
  bool channels_last = layout == "NHWC";
  PADDLE_ENFORCE_EQ(x.dims().size(), 4, common::errors::InvalidArgument("nvgpu: images to resize have 4 axes"));
  out->Resize(ResultDims(x.dims(), channels_last, size));
  ctx.template Alloc<T>(out);
  return ResizeOf(x, channels_last, size, align_corners, align_mode);
}

Size AnySize(const DenseTensor& x, const std::string& layout, const paddle::optional<DenseTensor>& out_size,
             const Tensors& size_tensor, const paddle::optional<DenseTensor>& scale_tensor, int out_h, int out_w,
             const std::vector<double>& scale) {
  int h = layout == "NHWC" ? 1 : 2;
  return SizeOfResult(x, x.dims()[h], x.dims()[h + 1], out_size, size_tensor, scale_tensor, out_h, out_w, scale);
}

}  // namespace

template <typename T, typename Context>
void NearestInterpKernel(const Context& ctx, const DenseTensor& x, const paddle::optional<DenseTensor>& out_size,
                         const Tensors& size_tensor, const paddle::optional<DenseTensor>& scale_tensor,
                         const std::string& layout, int, int out_h, int out_w, const std::vector<double>& scale,
                         const std::string&, bool align_corners, int align_mode, DenseTensor* out) {
  Size size = AnySize(x, layout, out_size, size_tensor, scale_tensor, out_h, out_w, scale);
  Resize resize = Prepare<T>(ctx, x, size, layout, align_corners, align_mode, out);
  ResizeNearest(SizeOf(x), resize, x.data(), out->data(), StreamOf(ctx));
}

template <typename T, typename Context>
void BilinearInterpKernel(const Context& ctx, const DenseTensor& x, const paddle::optional<DenseTensor>& out_size,
                          const Tensors& size_tensor, const paddle::optional<DenseTensor>& scale_tensor,
                          const std::string& layout, int, int out_h, int out_w, const std::vector<double>& scale,
                          const std::string&, bool align_corners, int align_mode, DenseTensor* out) {
  Size size = AnySize(x, layout, out_size, size_tensor, scale_tensor, out_h, out_w, scale);
  Resize resize = Prepare<T>(ctx, x, size, layout, align_corners, align_mode, out);
  ResizeBilinear(DtypeOf(x), resize, x.data(), out->data(), StreamOf(ctx));
}

}  // namespace nvgpu

// The tensors that give sizes are read on the host: they stay where they are.
PD_REGISTER_PLUGIN_KERNEL(nearest_interp, nvgpu, ALL_LAYOUT, nvgpu::NearestInterpKernel, float, double, int, int64_t,
                          uint8_t, nvgpu::fp16, nvgpu::bf16) {
  for (int i = 1; i < 4; ++i) kernel->InputAt(i).SetBackend(phi::Backend::ALL_BACKEND);
}
PD_REGISTER_PLUGIN_KERNEL(bilinear_interp, nvgpu, ALL_LAYOUT, nvgpu::BilinearInterpKernel, float, double, nvgpu::fp16,
                          nvgpu::bf16) {
  for (int i = 1; i < 4; ++i) kernel->InputAt(i).SetBackend(phi::Backend::ALL_BACKEND);
}
