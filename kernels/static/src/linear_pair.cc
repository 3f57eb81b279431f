// Two products in one launch where that is faster, as kernels/linear_to.py decides; else cuBLASLt does one after the
// other, by Paddle's own operator.
#include <map>
#include <mutex>
#include <tuple>

#include "failure.h"
#include "launch.h"
#include "tiles.h"

namespace sd3par {
namespace {

constexpr int kHopper = 9;
constexpr std::int64_t kMostRows = 2816, kStep = 64;  // kernels/linear_to.py, linear_hopper.py

struct Table {
  Address lines = 0;
  std::int64_t programs = 0, stages = 0;
};

// Tables stay: recorded graphs read them. The first call with these sizes copies one from the host, so it must come
// before a recording, as for eager code.
Table TableFor(const Gpu& gpu, const std::vector<std::int64_t>& rows, std::int64_t terms, std::int64_t columns) {
  static std::mutex lock;
  static auto* known = new std::map<std::tuple<int, std::vector<std::int64_t>, std::int64_t, std::int64_t>, Table>;
  std::lock_guard<std::mutex> hold(lock);
  Table& found = (*known)[{gpu.device(), rows, terms, columns}];
  if (found.lines == 0) {
    std::vector<Rectangles> streams;
    for (auto count : rows) streams.push_back({{0, count, 0}});
    auto made = TilesOf(streams, terms, columns, gpu.processors());
    auto size = made.lines.size() * sizeof(made.lines[0]);
    Address lines = 0;
    Must(Cuda().cuMemAlloc(&lines, size), "cuMemAlloc");
    Must(Cuda().cuMemcpyHtoD(lines, made.lines.data(), size), "cuMemcpyHtoD");
    found = {lines, made.programs, made.shape.stages};
  }
  return found;
}

struct Operands {
  const Tensor &x, &weight, &bias;

  std::int64_t terms() const { return weight.dims()[0]; }
  std::int64_t columns() const { return weight.dims()[1]; }
  std::int64_t rows() const { return x.numel() / terms(); }
  Tensor out() const {
    auto shape = ShapeOf(x);
    shape.back() = columns();
    return Empty(shape, x);
  }
};

bool WorthAPair(const Gpu& gpu, const Operands& first, const Operands& second) {
  bool some = first.rows() > 0 && second.rows() > 0 && first.rows() + second.rows() <= kMostRows;
  return some && gpu.architecture() / 10 == kHopper && first.weight.dims() == second.weight.dims() &&
         first.terms() % kStep == 0 && first.columns() % kStep == 0;
}

std::vector<Tensor> Together(const Gpu& gpu, const std::vector<Operands>& both, bool gelu) {
  std::vector<Tensor> outs;
  std::vector<std::int64_t> rows;
  Arguments arguments;
  for (const auto& one : both) {
    rows.push_back(one.rows());
    outs.push_back(one.out());
    arguments.push_back(Mapped(one.x, {one.rows(), one.terms()}));
    arguments.push_back(Mapped(one.weight, {one.terms(), one.columns()}));
    arguments.push_back(Pointer(one.bias));
    arguments.push_back(reinterpret_cast<std::int64_t>(outs.back().data()));
  }
  auto table = TableFor(gpu, rows, both[0].terms(), both[0].columns());
  arguments.push_back({"i64", reinterpret_cast<const void*>(table.lines)});
  Constants constants = {{"STAGES", table.stages}, {"GELU", gelu}, {"BIASED", 1}, {"LEAD", LeadFor(both[0].terms())}};
  auto& kernel = gpu.Find("_linear_hopper", arguments, constants);
  gpu.Launch(kernel, table.programs, 1, 1, arguments);
  return outs;
}

std::vector<Tensor> LinearPair(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& x2,
                               const Tensor& weight2, const Tensor& bias2, bool gelu) {
  Gpu gpu(x);
  Operands first{x, weight, bias}, second{x2, weight2, bias2};
  if (WorthAPair(gpu, first, second)) return Together(gpu, {first, second}, gelu);
  std::vector<Tensor> outs;
  for (const auto& one : {first, second}) {
    auto made = paddle::experimental::fused_gemm_epilogue(one.x, one.weight, one.bias, false, false,
                                                          gelu ? "gelu" : "none");
    outs.push_back(std::get<0>(made));
  }
  return outs;
}

Shape Wide(const Shape& x, const Shape& weight) {
  Shape shape = x;
  shape.back() = weight[1];
  return shape;
}

std::vector<Shape> PairShapes(const Shape& x, const Shape& weight, const Shape&, const Shape& x2,
                              const Shape& weight2, const Shape&, bool) {
  return {Wide(x, weight), Wide(x2, weight2)};
}

std::vector<DataType> PairTypes(const DataType& x, const DataType&, const DataType&, const DataType& x2,
                                const DataType&, const DataType&) {
  return {x, x2};
}

}  // namespace
}  // namespace sd3par

PD_BUILD_OP(sd3par_linear_pair)
    .Inputs({"x", "weight", "bias", "x2", "weight2", "bias2"})
    .Outputs({"out", "out2"})
    .Attrs({"gelu: bool"})
    .SetKernelFn(PD_KERNEL(sd3par::LinearPair))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::PairShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::PairTypes));
