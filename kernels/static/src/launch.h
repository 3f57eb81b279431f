// Where an operator runs, and how it starts a kernel there.
#pragma once

#include <cstdint>
#include <string>

#include "kernels.h"
#include "paddle/phi/api/all.h"

namespace sd3par {

using Tensor = paddle::Tensor;
using Maybe = paddle::optional<Tensor>;
using DataType = paddle::DataType;
using Shape = std::vector<std::int64_t>;
using MaybeShape = paddle::optional<Shape>;
using MaybeType = paddle::optional<DataType>;

// Paddle's stream where a tensor lies; throws where that is no GPU.
Stream StreamOf(const Tensor& x);

// A GPU and that stream.
class Gpu {
 public:
  explicit Gpu(const Tensor& like);

  int device() const { return device_; }
  int architecture() const { return architecture_; }  // 90 for 9.0
  int processors() const { return processors_; }

  // Returns the kernel for such a launch; grids are read off its constants.
  Kernel& Find(const char* name, const Arguments& arguments, const Constants& constants) const;

  // Starts it; does nothing if a side of the grid is 0.
  void Launch(Kernel& kernel, std::int64_t x, std::int64_t y, std::int64_t z, const Arguments& arguments) const;

  // Copies behind what the stream does already; `count` numbers from one place to another.
  void Copy(const Tensor& from, Tensor* to) const { CopyPart(from, 0, to, 0, from.numel()); }
  void CopyPart(const Tensor& from, std::int64_t start, Tensor* to, std::int64_t place, std::int64_t count) const;

 private:
  int device_ = 0, architecture_ = 0, processors_ = 0;
  Stream stream_ = nullptr;
};

// Returns the triton name of a dtype: "bf16".
const char* TypeName(DataType type);

// A tensor as an argument, from its element `offset` on; none for a tensor that is not there.
Argument Pointer(const Tensor& x, std::int64_t offset = 0);
Argument Pointer(const Maybe& x);

// A tensor in one run as TMA sees it in this shape.
Argument Mapped(const Tensor& x, const Shape& shape);

// A new tensor beside another, of its dtype or `type`.
Tensor Empty(const Shape& shape, const Tensor& like);
Tensor Empty(const Shape& shape, const Tensor& like, DataType type);

Shape ShapeOf(const Tensor& x);
std::int64_t Product(const Shape& shape);
Shape Contiguous(const Shape& shape);  // strides
inline std::int64_t DivideUp(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace sd3par
