// What begins and ends a step, and the end of a dual block's attentions: kernels/patch_embed.py, guidance_euler.py,
// gated_sum.py.
#include "failure.h"
#include "launch.h"
#include "lines.h"

namespace sd3par {
namespace {

// latents: [B, T, p * p * C] fp32, weight: [D, C, p, p], bias: [D], positions: [T, D] fp32.
std::vector<Tensor> PatchEmbed(const Tensor& latents, const Tensor& weight, const Tensor& bias,
                               const Tensor& positions) {
  Gpu gpu(latents);
  auto shape = ShapeOf(latents);
  std::int64_t images = shape[0], tokens = shape[1], features = shape[2];
  std::int64_t dim = weight.dims()[0];
  Require(weight.numel() == dim * features, "patch_embed: latents of p * p * C numbers a token");
  Require(positions.numel() == tokens * dim, "patch_embed: positions of as many tokens");
  Tensor out = Empty({images, tokens, dim}, weight);
  Arguments arguments = {Pointer(latents), Pointer(weight), Pointer(bias), Pointer(positions), Pointer(out)};
  for (auto number : {tokens, tokens * features, features, dim, tokens * dim, dim, images * tokens * dim}) {
    arguments.push_back(number);
  }
  auto& kernel = gpu.Find("_patch_embed", arguments, {{"DIM", dim}, {"COPIES", 1}});
  auto across = DivideUp(dim, kernel["OUTPUTS"] * kernel["TIMES"]);
  gpu.Launch(kernel, images, across, DivideUp(tokens, kernel["TOKENS"]), arguments);
  return {out};
}

std::vector<Shape> PatchShape(const Shape& latents, const Shape& weight, const Shape&, const Shape&) {
  return {{latents[0], latents[1], weight[0]}};
}

std::vector<DataType> PatchType(const DataType&, const DataType& weight, const DataType&, const DataType&) {
  return {weight};
}

// latents: [B, ...] fp32; cond, uncond: [B, ...]; scale, delta: [] fp32. The kernel works in place, on a copy.
std::vector<Tensor> GuidanceEuler(const Tensor& latents, const Maybe& uncond, const Tensor& cond, const Tensor& scale,
                                  const Tensor& delta) {
  Gpu gpu(latents);
  std::int64_t size = latents.numel();
  Require(cond.numel() == size && (!uncond || uncond->numel() == size), "guidance_euler: predictions as latents are");
  Tensor out = Empty(ShapeOf(latents), latents);
  gpu.Copy(latents, &out);
  const Tensor& other = uncond ? *uncond : cond;
  Arguments arguments = {Pointer(out), Pointer(cond), Pointer(other), Pointer(scale), Pointer(delta), size};
  auto& kernel = gpu.Find("_guidance_euler", arguments, {{"GUIDED", uncond ? 1 : 0}});
  gpu.Launch(kernel, DivideUp(size, kernel["BLOCK"]), 1, 1, arguments);
  return {out};
}

std::vector<Shape> EulerShape(const Shape& latents, const MaybeShape&, const Shape&, const Shape&, const Shape&) {
  return {latents};
}

std::vector<DataType> EulerType(const DataType& latents, const MaybeType&, const DataType&, const DataType&,
                                const DataType&) {
  return {latents};
}

// x, x2: [R, T, D]; their gates are lines of `bases`.
std::vector<Tensor> GatedSum(const Tensor& x, const Tensor& x2, const std::vector<Tensor>& bases,
                             const std::vector<int>& lines) {
  Gpu gpu(x);
  auto shape = ShapeOf(x);
  std::int64_t tokens = shape[1], dim = shape[2], row = tokens * dim;
  Require(x2.numel() == x.numel(), "gated_sum: two branches alike");
  Line gate = LineOf(bases, lines[0], lines[1], shape[0], dim), gate2 = LineOf(bases, lines[2], lines[3], shape[0], dim);
  Tensor out = Empty(shape, x);
  Arguments arguments = {Pointer(x), gate.vector, Pointer(x2), gate2.vector, Pointer(out)};
  for (auto number : {tokens, row, dim, row, dim, gate.stride, row, dim, gate2.stride}) arguments.push_back(number);
  gpu.Launch(gpu.Find("_gated_sum", arguments, {{"DIM", dim}}), tokens, shape[0], 1, arguments);
  return {out};
}

std::vector<Shape> GatedShape(const Shape& x, const Shape&, const std::vector<Shape>&, const std::vector<int>&) {
  return {x};
}

std::vector<DataType> GatedType(const DataType& x, const DataType&, const std::vector<DataType>&) { return {x}; }

// packed: [R, T, 3 * heads * head_dim], whose q and k are normed in place: nothing else reads a projection; weights:
// [head_dim]. The result is the same memory.
std::vector<Tensor> NormHeads(const Tensor& packed, const Tensor& norm_q, const Tensor& norm_k) {
  Gpu gpu(packed);
  auto shape = ShapeOf(packed);
  std::int64_t dim = norm_q.numel(), tokens = shape[1], width = shape[2], heads = width / (3 * dim);
  Require(heads * 3 * dim == width, "split_heads: [R, T, 3 * heads * head_dim]");
  Arguments arguments = {Pointer(packed), Pointer(norm_q), Pointer(norm_k)};
  for (auto number : {tokens * 2 * heads, tokens * width, width}) arguments.push_back(number);
  auto& kernel = gpu.Find("_norm_heads", arguments, {{"HEADS", heads}, {"DIM", dim}});
  gpu.Launch(kernel, DivideUp(tokens * 2 * heads, kernel["BLOCK"]), shape[0], 1, arguments);
  return {packed};
}

std::vector<Shape> HeadsShape(const Shape& packed, const Shape&, const Shape&) { return {packed}; }

std::vector<DataType> HeadsType(const DataType& packed, const DataType&, const DataType&) { return {packed}; }

}  // namespace
}  // namespace sd3par

PD_BUILD_OP(sd3par_patch_embed)
    .Inputs({"latents", "weight", "bias", "positions"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(sd3par::PatchEmbed))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::PatchShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::PatchType));

PD_BUILD_OP(sd3par_guidance_euler)
    .Inputs({"latents", paddle::Optional("uncond"), "cond", "scale", "delta"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(sd3par::GuidanceEuler))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::EulerShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::EulerType));

PD_BUILD_OP(sd3par_gated_sum)
    .Inputs({"x", "x2", paddle::Vec("bases")})
    .Outputs({"out"})
    .Attrs({"lines: std::vector<int>"})
    .SetKernelFn(PD_KERNEL(sd3par::GatedSum))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::GatedShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::GatedType));

PD_BUILD_OP(sd3par_norm_heads)
    .Inputs({"packed", "norm_q", "norm_k"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(sd3par::NormHeads))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::HeadsShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::HeadsType));
