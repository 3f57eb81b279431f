// Gated sums and modulated norms, into new tensors.
#include "failure.h"
#include "launch.h"
#include "streams.h"

namespace sd3par {
namespace {

// New tensors of a stream's norms.
Norms Made(const Tensor& x, int count) {
  auto shape = ShapeOf(x);
  Norms norms;
  for (int i = 0; i < count; ++i) {
    norms.outs.push_back(Empty(shape, x));
    norms.targets.push_back(Pointer(norms.outs.back()));
  }
  norms.row = shape[1] * shape[2];
  return norms;
}

std::vector<Tensor> Adaln(const Tensor& x, const Maybe& branch, const Maybe& x2, const Maybe& branch2,
                          const std::vector<Tensor>& bases, const std::vector<int>& lines,
                          const std::vector<int>& norms) {
  Gpu gpu(x);
  Streams streams{{x}, {branch}, {}};
  if (x2) streams.x.push_back(*x2), streams.branches.push_back(branch2);
  Require(streams.x.size() == norms.size(), "adaln: norms of as many streams as there are");
  for (std::size_t i = 0; i < norms.size(); ++i) streams.norms.push_back(Made(streams.x[i], norms[i]));
  return RunStreams(gpu, {lines, norms, branch.is_initialized()}, streams, bases, {{"PARTS", 1}, {"COPIES", 1}});
}

std::vector<Shape> Shapes(const Shape& x, const MaybeShape& branch, const MaybeShape& x2, const MaybeShape&,
                          const std::vector<Shape>&, const std::vector<int>&, const std::vector<int>& norms) {
  std::vector<Shape> sums, normed;
  for (std::size_t i = 0; i < norms.size(); ++i) {
    const Shape& own = i == 0 ? x : *x2;
    if (branch) sums.push_back(own);
    normed.insert(normed.end(), norms[i], own);
  }
  sums.insert(sums.end(), normed.begin(), normed.end());
  return sums;
}

template <int outputs>
std::vector<DataType> Types(const DataType& x, const MaybeType&, const MaybeType&, const MaybeType&,
                            const std::vector<DataType>&) {
  return std::vector<DataType>(outputs, x);
}

}  // namespace
}  // namespace sd3par

// One operator for each number of results, which Paddle wants to know beforehand: sums of the streams that have
// branches, then the norms of the first stream and of the second.
#define SD3PAR_ADALN(count, ...)                                                           \
  PD_BUILD_OP(sd3par_adaln_##count)                                                        \
      .Inputs({"x", paddle::Optional("branch"), paddle::Optional("x2"), paddle::Optional("branch2"), \
               paddle::Vec("bases")})                                                      \
      .Outputs({__VA_ARGS__})                                                              \
      .Attrs({"lines: std::vector<int>", "norms: std::vector<int>"})                       \
      .SetKernelFn(PD_KERNEL(sd3par::Adaln))                                               \
      .SetInferShapeFn(PD_INFER_SHAPE(sd3par::Shapes))                                     \
      .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::Types<count>))

SD3PAR_ADALN(1, "a");
SD3PAR_ADALN(2, "a", "b");
SD3PAR_ADALN(3, "a", "b", "c");
SD3PAR_ADALN(4, "a", "b", "c", "d");
SD3PAR_ADALN(5, "a", "b", "c", "d", "e");
