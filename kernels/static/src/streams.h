// Streams of tokens whose sums with a branch are normed: kernels/adaln.py. The vectors of a stream are lines of larger
// tensors of modulations, which a program has no views of.
#pragma once

#include <vector>

#include "launch.h"

namespace sd3par {

// What an operator says of its streams. lines: of each stream's five vectors (a gate, and scale and shift twice), which
// of the bases it is in and at which line, two numbers each, -1 and -1 for none; norms: of each stream, how many.
struct Layout {
  const std::vector<int>& lines;
  const std::vector<int>& norms;
  bool adds;  // a branch to x, whose sum is an output
};

// Where a stream's norms go: results, what the kernel is told of each, and numbers from row to row there.
struct Norms {
  std::vector<Tensor> outs;
  std::vector<Argument> targets;
  std::int64_t row = 0;
};

// x: [R, T, D]; branches: the same, or their parts, [mp, R, T or more, D].
struct Streams {
  std::vector<Tensor> x;
  std::vector<Maybe> branches;
  std::vector<Norms> norms;
};

// Launches the kernel with these constants besides; returns sums, if there are any, then all norms.
std::vector<Tensor> RunStreams(const Gpu& gpu, const Layout& layout, const Streams& streams,
                               const std::vector<Tensor>& bases, Constants constants);

}  // namespace sd3par
