// Vectors, [R, D], that are lines of larger tensors of modulations, [..., R, lines, D]: a program has no views of them.
#pragma once

#include "failure.h"
#include "launch.h"

namespace sd3par {

struct Line {
  Argument vector;
  std::int64_t stride = 0;  // from row to row
};

// A line of the tensor of number `base`; none if that is -1.
inline Line LineOf(const std::vector<Tensor>& bases, int base, int line, std::int64_t rows, std::int64_t dim) {
  if (base < 0) return {};
  const Tensor& whole = bases.at(base);
  auto count = whole.numel() / (rows * dim);
  Require(count * rows * dim == whole.numel() && line < count, "modulations of another number of rows");
  return {Pointer(whole, line * dim), count * dim};
}

}  // namespace sd3par
