#include "streams.h"

#include "failure.h"
#include "lines.h"

namespace sd3par {
namespace {

constexpr int kVectors = 5;

// From part to part of a branch, from row to row and from token to token.
std::vector<std::int64_t> StridesOf(const Maybe& branch) {
  if (!branch) return {0, 0, 0};
  auto strides = Contiguous(ShapeOf(*branch));
  bool parts = strides.size() == 4;
  return {parts ? strides[0] : 0, strides[strides.size() - 3], strides[strides.size() - 2]};
}

// The arguments of one stream, in the order of the kernel's Places.
void AddStream(const Layout& layout, std::size_t index, const Streams& streams, const std::vector<Tensor>& bases,
               const Tensor& total, Arguments* arguments) {
  const Tensor& x = streams.x[index];
  const Maybe& branch = streams.branches[index];
  const Norms& norms = streams.norms[index];
  auto shape = ShapeOf(x);
  std::int64_t rows = shape[0], tokens = shape[1], dim = shape[2];
  std::vector<Line> lines;
  for (int i = 0; i < kVectors; ++i) {
    auto at = 2 * (kVectors * index + i);
    lines.push_back(LineOf(bases, layout.lines[at], layout.lines[at + 1], rows, dim));
  }
  bool twice = norms.targets.size() == 2;
  for (const auto& one : {Pointer(x), Pointer(branch)}) arguments->push_back(one);
  for (const auto& line : lines) arguments->push_back(line.vector);
  for (const auto& one : {Pointer(total), norms.targets[0], twice ? norms.targets[1] : Argument()}) {
    arguments->push_back(one);
  }
  for (auto number : {tokens, tokens * dim, dim}) arguments->push_back(number);
  for (auto stride : StridesOf(branch)) arguments->push_back(stride);
  for (const auto& line : lines) arguments->push_back(line.stride);
  for (auto number : {norms.row, twice ? norms.row : 0}) arguments->push_back(number);
}

}  // namespace

std::vector<Tensor> RunStreams(const Gpu& gpu, const Layout& layout, const Streams& streams,
                               const std::vector<Tensor>& bases, Constants constants) {
  auto shape = ShapeOf(streams.x[0]);
  std::vector<Tensor> results, norms;
  std::vector<Arguments> given(streams.x.size());
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < streams.x.size(); ++i) {
    const Tensor& x = streams.x[i];
    auto own = ShapeOf(x);
    Require(own[0] == shape[0] && own[2] == shape[2], "adaln: streams of different rows or columns");
    tokens += own[1];
    Tensor total = layout.adds ? Empty(own, x) : x;
    if (layout.adds) results.push_back(total);
    norms.insert(norms.end(), streams.norms[i].outs.begin(), streams.norms[i].outs.end());
    AddStream(layout, i, streams, bases, total, &given[i]);
  }
  Arguments arguments = given.front();
  arguments.insert(arguments.end(), given.back().begin(), given.back().end());
  constants["DIM"] = shape[2];
  gpu.Launch(gpu.Find("_adaln", arguments, constants), tokens, shape[0], 1, arguments);
  results.insert(results.end(), norms.begin(), norms.end());
  return results;
}

}  // namespace sd3par
