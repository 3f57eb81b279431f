// Gated sums and modulated norms: kernels/adaln.py. The vectors of a stream are lines of larger tensors of modulations,
// [..., R, lines, D], which a program has no views of.
#include "failure.h"
#include "launch.h"
#include "lines.h"

namespace sd3par {
namespace {

enum Vector { kGate, kScale, kShift, kScale2, kShift2, kVectors };

// What an operator says of its streams. lines: of each stream's five vectors, which of `bases` it is in and at which
// line, two numbers each, -1 and -1 for none; norms: of each stream, how many.
struct Layout {
  const std::vector<int>& lines;
  const std::vector<int>& norms;
  bool adds;  // a branch to x, whose sum is an output

  std::size_t streams() const { return norms.size(); }
};

// The arguments of one stream, in the order of the kernel's Places.
void AddStream(const Layout& layout, std::size_t index, const Tensor& x, const Maybe& branch,
               const std::vector<Tensor>& bases, const Tensor& total, const std::vector<Tensor>& outs,
               Arguments* arguments) {
  auto shape = ShapeOf(x);
  std::int64_t rows = shape[0], tokens = shape[1], dim = shape[2], row = tokens * dim;
  std::vector<Line> lines;
  for (int i = 0; i < kVectors; ++i) {
    auto at = 2 * (kVectors * index + i);
    lines.push_back(LineOf(bases, layout.lines[at], layout.lines[at + 1], rows, dim));
  }
  bool twice = layout.norms[index] == 2;
  for (const auto& one : {Pointer(x), Pointer(branch)}) arguments->push_back(one);
  for (const auto& line : lines) arguments->push_back(line.vector);
  for (const auto& one : {Pointer(total), Pointer(outs[0]), twice ? Pointer(outs[1]) : Argument()}) {
    arguments->push_back(one);
  }
  for (auto number : {tokens, row, dim, std::int64_t{0}, branch ? row : 0, branch ? dim : 0}) {
    arguments->push_back(number);
  }
  for (const auto& line : lines) arguments->push_back(line.stride);
  for (auto number : {row, twice ? row : 0}) arguments->push_back(number);
}

struct Streams {
  std::vector<Tensor> x;
  std::vector<Maybe> branches;
};

std::vector<Tensor> Run(const Layout& layout, const Streams& streams, const std::vector<Tensor>& bases) {
  Gpu gpu(streams.x[0]);
  auto shape = ShapeOf(streams.x[0]);
  std::vector<Tensor> sums, norms, results;
  std::vector<Arguments> given;
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < layout.streams(); ++i) {
    const Tensor& x = streams.x[i];
    auto own = ShapeOf(x);
    Require(own[0] == shape[0] && own[2] == shape[2], "adaln: streams of different rows or columns");
    tokens += own[1];
    Tensor total = layout.adds ? Empty(own, x) : x;
    if (layout.adds) sums.push_back(total);
    std::vector<Tensor> outs;
    for (int j = 0; j < layout.norms[i]; ++j) outs.push_back(Empty(own, x));
    norms.insert(norms.end(), outs.begin(), outs.end());
    given.emplace_back();
    AddStream(layout, i, x, streams.branches[i], bases, total, outs, &given.back());
  }
  Arguments arguments = given.front();
  arguments.insert(arguments.end(), given.back().begin(), given.back().end());
  auto& kernel = gpu.Find("_adaln", arguments, {{"DIM", shape[2]}, {"PARTS", 1}, {"COPIES", 1}});
  gpu.Launch(kernel, tokens, shape[0], 1, arguments);
  results = sums;
  results.insert(results.end(), norms.begin(), norms.end());
  return results;
}

std::vector<Tensor> Adaln(const Tensor& x, const Maybe& branch, const Maybe& x2, const Maybe& branch2,
                          const std::vector<Tensor>& bases, const std::vector<int>& lines,
                          const std::vector<int>& norms) {
  Streams streams{{x}, {branch}};
  if (x2) streams.x.push_back(*x2), streams.branches.push_back(branch2);
  Require(streams.x.size() == norms.size(), "adaln: norms of as many streams as there are");
  return Run({lines, norms, branch.is_initialized()}, streams, bases);
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
