#include "../cuda/conv.h"
#include "cudnn.h"
#include "glue.h"
#include "paddle/phi/kernels/cpu/conv_util.h"

namespace nvgpu {
namespace {

struct ConvAttributes {
  std::vector<int> strides, paddings;  // paddings: one an axis, or top, bottom, left, right
  std::string padding_algorithm;       // EXPLICIT, SAME or VALID
  std::vector<int> dilations;
  int groups;
  bool channels_last;
};

// Four paddings, with SAME and VALID resolved (SAME sets the dilations to 1, as everywhere in Paddle).
ConvAttributes Resolved(ConvAttributes a, const DenseTensor& x, const DenseTensor& filter) {
  const int first = a.channels_last ? 1 : 2;
  const phi::DDim image = common::slice_ddim(x.dims(), first, first + 2);
  const std::vector<int> kernel = {static_cast<int>(filter.dims()[2]), static_cast<int>(filter.dims()[3])};
  phi::UpdatePaddingAndDilation(&a.paddings, &a.dilations, a.padding_algorithm, image, a.strides, kernel);
  return a;
}

DenseTensor Temporary(const CustomContext& ctx, const phi::DDim& dims, phi::DataType type) {
  DenseTensor out;
  out.Resize(dims);
  ctx.Alloc(&out, type);
  return out;
}

// cuDNN pads both sides alike. Otherwise the image is padded first, and then not by cuDNN.
DenseTensor Padded(const CustomContext& ctx, const DenseTensor& x, ConvAttributes* a) {
  std::vector<int>& p = a->paddings;
  if (p[0] == p[1] && p[2] == p[3]) return x;
  phi::DDim dims = x.dims();
  const int row = a->channels_last ? 1 : 2;
  PadShape shape{a->channels_last ? dims[0] : dims[0] * dims[1], dims[row], dims[row + 1],
                 a->channels_last ? dims[3] : 1, p[0], p[1], p[2], p[3]};
  dims[row] += p[0] + p[1];
  dims[row + 1] += p[2] + p[3];
  DenseTensor out = Temporary(ctx, dims, x.dtype());
  PadImage(phi::SizeOf(x.dtype()), shape, x.data(), out.data(), StreamOf(ctx));
  p = {0, 0, 0, 0};
  return out;
}

// Paddle's filter is OIHW for NHWC images too, where cuDNN wants OHWI.
DenseTensor FilterAsImage(const CustomContext& ctx, const DenseTensor& filter, bool channels_last) {
  if (!channels_last) return filter;
  const auto& d = filter.dims();
  DenseTensor out = Temporary(ctx, common::make_ddim({d[0], d[2], d[3], d[1]}), filter.dtype());
  SwapLastAxes(phi::SizeOf(filter.dtype()), d[0], d[1], d[2] * d[3], filter.data(), out.data(), StreamOf(ctx));
  return out;
}

ConvShape ShapeOf(const DenseTensor& x, const DenseTensor& filter, const ConvAttributes& a, const DenseTensor& out) {
  const int row = a.channels_last ? 1 : 2, channel = a.channels_last ? 3 : 1;
  auto size = [](const DenseTensor& t, int axis) { return static_cast<int>(t.dims()[axis]); };
  ConvShape s{};
  s.batch = size(x, 0), s.channels = size(x, channel), s.height = size(x, row), s.width = size(x, row + 1);
  s.filters = size(filter, 0), s.filter_height = size(filter, 2), s.filter_width = size(filter, 3);
  s.out_height = size(out, row), s.out_width = size(out, row + 1);
  s.pad_height = a.paddings[0], s.pad_width = a.paddings[2];
  s.stride_height = a.strides[0], s.stride_width = a.strides[1];
  s.dilation_height = a.dilations[0], s.dilation_width = a.dilations[1];
  s.groups = a.groups, s.channels_last = a.channels_last;
  return s;
}

// cuDNN's tensors have fewer than 2^31 elements: larger batches go in parts.
void Convolve(const CustomContext& ctx, const DenseTensor& x, const DenseTensor& filter, ConvShape shape,
              DenseTensor* out) {
  const int64_t batch = x.dims()[0], x_image = x.numel() / batch, out_image = out->numel() / batch;
  const int64_t part = std::max<int64_t>(1, std::min(batch, INT32_MAX / std::max(x_image, out_image)));
  const int64_t size = static_cast<int64_t>(phi::SizeOf(x.dtype()));
  for (int64_t at = 0; at < batch; at += part) {
    shape.batch = static_cast<int>(std::min(part, batch - at));
    auto convolution = ConvolutionOf(DtypeOf(x), shape);
    const auto bytes = static_cast<int64_t>(convolution->Workspace());
    DenseTensor workspace = Temporary(ctx, common::make_ddim({std::max<int64_t>(bytes, 1)}), phi::DataType::UINT8);
    convolution->Run(static_cast<const char*>(x.data()) + at * x_image * size, filter.data(), workspace.data(),
                     static_cast<char*>(out->data()) + at * out_image * size, StreamOf(ctx));
  }
}

// NHWC by way of NCHW: cuDNN has NHWC kernels for tensor cores only.
void ConvolveAsPlanes(const CustomContext& ctx, const DenseTensor& x, const DenseTensor& filter, ConvAttributes a,
                      DenseTensor* out) {
  const size_t size = phi::SizeOf(x.dtype());
  const auto &in = x.dims(), &to = out->dims();
  DenseTensor planes = Temporary(ctx, common::make_ddim({in[0], in[3], in[1], in[2]}), x.dtype());
  DenseTensor result = Temporary(ctx, common::make_ddim({to[0], to[3], to[1], to[2]}), x.dtype());
  a.channels_last = false;
  SwapLastAxes(size, in[0], in[1] * in[2], in[3], x.data(), planes.data(), StreamOf(ctx));
  Convolve(ctx, planes, filter, ShapeOf(planes, filter, a, result), &result);
  SwapLastAxes(size, to[0], to[3], to[1] * to[2], result.data(), out->data(), StreamOf(ctx));
}

template <typename T>
void ForwardInto(const CustomContext& ctx, const DenseTensor& x, const DenseTensor& filter, ConvAttributes attributes,
                 DenseTensor* out) {
  ctx.template Alloc<T>(out);
  if (out->numel() == 0) return;
  ConvAttributes a = Resolved(std::move(attributes), x, filter);
  DenseTensor image = Padded(ctx, x, &a);
  const bool tensor_cores = sizeof(T) == 2;
  if (a.channels_last && (!tensor_cores || a.groups != 1)) return ConvolveAsPlanes(ctx, image, filter, a, out);
  DenseTensor weights = FilterAsImage(ctx, filter, a.channels_last);
  Convolve(ctx, image, weights, ShapeOf(image, filter, a, *out), out);
}

}  // namespace

// x: [N, C, H, W] or [N, H, W, C] by data_format; filter: [O, C / groups, h, w] in both.
template <typename T, typename Context>
void ConvKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& filter, const std::vector<int>& strides,
                const std::vector<int>& paddings, const std::string& padding_algorithm,
                const std::vector<int>& dilations, int groups, const std::string& data_format, DenseTensor* out) {
  ForwardInto<T>(ctx, x, filter, {strides, paddings, padding_algorithm, dilations, groups, data_format == "NHWC"}, out);
}

template <typename T, typename Context>
void DepthwiseConvKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& filter,
                         const std::vector<int>& strides, const std::vector<int>& paddings,
                         const std::string& padding_algorithm, int groups, const std::vector<int>& dilations,
                         const std::string& data_format, DenseTensor* out) {
  ForwardInto<T>(ctx, x, filter, {strides, paddings, padding_algorithm, dilations, groups, data_format == "NHWC"}, out);
}

}  // namespace nvgpu

PD_REGISTER_PLUGIN_KERNEL(conv2d, nvgpu, ALL_LAYOUT, nvgpu::ConvKernel, float, double, nvgpu::fp16, nvgpu::bf16) {}
PD_REGISTER_PLUGIN_KERNEL(depthwise_conv2d, nvgpu, ALL_LAYOUT, nvgpu::DepthwiseConvKernel, float, double, nvgpu::fp16,
                          nvgpu::bf16) {}
