// Convolutions and norms of channels-last maps, what the autoencoder is made of: kernels/conv.py, group_norm_silu.py.
#include <algorithm>
#include <cstring>

#include "failure.h"
#include "launch.h"

namespace sd3par {
namespace {

constexpr std::int64_t kNarrow = 16, kFew = 100;  // kernels/conv.py
constexpr std::int64_t kTile = 2048, kParts = 1024, kMostGroups = 2;  // kernels/group_norm_silu.py

std::int64_t NextPowerOfTwo(std::int64_t n) {
  std::int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// Pixels, outputs and channels of a product, as `tiles_for` chooses them.
struct Tiles {
  std::int64_t pixels, outputs, channels;
};

Tiles TilesFor(std::int64_t lines, std::int64_t width, std::int64_t channels, std::int64_t outputs) {
  auto step = std::min<std::int64_t>(channels, 64);
  if (outputs <= 64 || outputs % 128 != 0) {
    return {128, std::min<std::int64_t>(64, std::max(kNarrow, NextPowerOfTwo(outputs))), step};
  }
  std::int64_t wide = outputs % 256 == 0 ? 256 : 128;
  if (width <= 64 || lines * DivideUp(width, 128) * (outputs / wide) < kFew) return {64, 128, step};
  return {128, wide, step};
}

// weight: [O, 3, 3, C], or [4, O, 2, 2, C] to enlarge x, [B, H, W, C], twice.
Tensor Convolve(const Tensor& x, const Tensor& weight, const Tensor& bias, const Maybe& residual, bool upsample) {
  Gpu gpu(x);
  auto shape = ShapeOf(x), filter = ShapeOf(weight);
  std::int64_t batch = shape[0], height = shape[1], width = shape[2], channels = shape[3];
  std::int64_t outputs = filter[upsample ? 1 : 0], phases = upsample ? 4 : 1, scale = upsample ? 2 : 1;
  Tensor out = Empty({batch, scale * height, scale * width, outputs}, x);
  Require(!residual || residual->numel() == out.numel(), "conv3x3: a residual like the result");
  auto tiles = TilesFor(batch * height * phases, width, channels, outputs);
  std::int64_t filters = phases * outputs, places = upsample ? 4 * channels : 9 * channels;
  Require(weight.numel() == filters * places, "conv3x3: a weight for the map's channels");
  Arguments arguments = {Mapped(x, shape), Mapped(weight, {filters, places}), Pointer(bias),
                         residual ? Pointer(*residual) : Pointer(x), Pointer(out)};
  for (auto number : {batch * height, height, width, channels, outputs}) arguments.push_back(number);
  Constants constants = {{"PIXELS", tiles.pixels}, {"OUTPUTS", tiles.outputs}, {"CHANNELS", tiles.channels},
                         {"UPSAMPLE", upsample},   {"RESIDUAL", residual ? 1 : 0}, {"HALO", 0}};
  auto count = batch * height * DivideUp(width, tiles.pixels) * DivideUp(outputs, tiles.outputs) * phases;
  gpu.Launch(gpu.Find("_conv3x3", arguments, constants), count, 1, 1, arguments);
  return out;
}

std::vector<Tensor> Conv(const Tensor& x, const Tensor& weight, const Tensor& bias, const Maybe& residual) {
  return {Convolve(x, weight, bias, residual, false)};
}

std::vector<Tensor> UpsampleConv(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return {Convolve(x, weight, bias, paddle::none, true)};
}

std::int64_t Bits(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// x: [B, H, W, C]; three kernels: statistics of parts, of all, and what they are for.
std::vector<Tensor> GroupNorm(const Tensor& x, const Tensor& weight, const Tensor& bias, int groups, float epsilon,
                              bool silu) {
  Gpu gpu(x);
  auto shape = ShapeOf(x);
  std::int64_t images = shape[0], pixels = shape[1] * shape[2], channels = shape[3];
  Tensor out = Empty(shape, x);
  if (x.numel() == 0) return {out};
  std::int64_t rows = std::max<std::int64_t>(kTile / channels, 1);
  std::int64_t parts = std::min(DivideUp(pixels, rows), std::max<std::int64_t>(kParts / images, 1));
  Tensor partial = Empty({images, parts, 2, groups}, x, DataType::FLOAT32);
  Tensor statistics = Empty({images, 2, groups}, x, DataType::FLOAT32);
  Constants constants = {{"GROUPS", groups}, {"CHANNELS", channels}, {"ROWS", rows}};
  Arguments arguments = {Pointer(x), Pointer(partial), pixels, parts};
  gpu.Launch(gpu.Find("_partial", arguments, constants), parts, images, 1, arguments);
  arguments = {Pointer(partial), Pointer(statistics), pixels, parts};
  auto merging = constants;
  merging["PARTS"] = NextPowerOfTwo(parts);
  merging["EPSILON"] = Bits(epsilon);
  auto across = groups / std::min<std::int64_t>(groups, kMostGroups);
  gpu.Launch(gpu.Find("_merge", arguments, merging), across, images, 1, arguments);
  arguments = {Pointer(x), Pointer(statistics), Pointer(weight), Pointer(bias), Pointer(out), pixels};
  constants["SILU"] = silu;
  gpu.Launch(gpu.Find("_apply", arguments, constants), DivideUp(pixels, rows), images, 1, arguments);
  return {out};
}

std::int64_t Twice(std::int64_t side) { return side < 0 ? -1 : 2 * side; }

std::vector<Shape> ConvShape(const Shape& x, const Shape& weight, const Shape&, const MaybeShape&) {
  return {{x[0], x[1], x[2], weight[0]}};
}
std::vector<Shape> UpsampleShape(const Shape& x, const Shape& weight, const Shape&) {
  return {{x[0], Twice(x[1]), Twice(x[2]), weight[1]}};
}
std::vector<Shape> NormShape(const Shape& x, const Shape&, const Shape&, int, float, bool) { return {x}; }
std::vector<DataType> ConvType(const DataType& x, const DataType&, const DataType&, const MaybeType&) { return {x}; }
std::vector<DataType> LikeFirst(const DataType& x, const DataType&, const DataType&) { return {x}; }

}  // namespace
}  // namespace sd3par

PD_BUILD_OP(sd3par_conv3x3)
    .Inputs({"x", "weight", "bias", paddle::Optional("residual")})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(sd3par::Conv))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::ConvShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::ConvType));

PD_BUILD_OP(sd3par_upsample_conv3x3)
    .Inputs({"x", "weight", "bias"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(sd3par::UpsampleConv))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::UpsampleShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::LikeFirst));

PD_BUILD_OP(sd3par_group_norm_silu)
    .Inputs({"x", "weight", "bias"})
    .Outputs({"out"})
    .Attrs({"groups: int", "epsilon: float", "silu: bool"})
    .SetKernelFn(PD_KERNEL(sd3par::GroupNorm))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::NormShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::LikeFirst));
