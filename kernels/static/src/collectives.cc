// Collectives on Paddle's stream, in half precision too: Paddle's own operators for them know no bfloat16 on custom
// devices, and none of them runs there inside a program (3.3.1). `ring` is the number of a group that the process made;
// Paddle's executor ends the process where an attribute is called ring_id.
#include "failure.h"
#include "launch.h"
#include "paddle/phi/backends/device_manager.h"
#include "paddle/phi/core/distributed/comm_context_manager.h"
#include "paddle/phi/core/distributed/xccl_comm_context.h"

namespace sd3par {
namespace {

using Manager = phi::DeviceManager;

// A group's communicator, and how many ranks it has.
class Group {
 public:
  Group(const Tensor& x, int ring) : type_(x.place().GetDeviceType()) {
    if (x.place().GetType() != phi::AllocationType::CUSTOM) Fail("collectives of programs run on nvgpu alone");
    auto& known = phi::distributed::CommContextManager::GetInstance();
    auto key = std::to_string(ring);
    if (!known.Has(key)) Fail("no group of ranks has the number " + key + ": the program was loaded without its mesh");
    auto* context = static_cast<phi::distributed::XCCLCommContext*>(known.Get(key));
    comm_ = context->GetXcclComm();
    rank_ = context->GetRank();
    size_ = context->GetSize();
    stream_ = StreamOf(x);
  }

  int size() const { return size_; }

  void AllReduce(const Tensor& x, Tensor* out) const {
    Manager::CCLAllReduce(type_, const_cast<void*>(x.data()), out->data(), x.numel(), x.dtype(),
                          phi::ccl::CCLReduceOp::SUM, comm_, stream_);
  }

  void AllGather(const Tensor& x, Tensor* out) const {
    Manager::CCLAllGather(type_, const_cast<void*>(x.data()), out->data(), x.numel(), x.dtype(), comm_, stream_);
  }

  // Part j of x goes to rank j.
  void AllToAll(const Tensor& x, Tensor* out) const {
    auto count = static_cast<std::size_t>(x.numel() / size_), bytes = count * phi::SizeOf(x.dtype());
    std::vector<const void*> from;
    std::vector<void*> to;
    for (int i = 0; i < size_; ++i) {
      from.push_back(static_cast<const char*>(x.data()) + i * bytes);
      to.push_back(static_cast<char*>(out->data()) + i * bytes);
    }
    std::vector<std::size_t> counts(size_, count);
    std::vector<DataType> types(size_, x.dtype());
    Manager::CCLAllToAll(type_, from.data(), counts.data(), types.data(), to.data(), counts.data(), types.data(), rank_,
                         size_, comm_, stream_);
  }

  // What is asked for in between is done at once.
  void Together(bool begin) const { begin ? Manager::CCLGroupStart(type_) : Manager::CCLGroupEnd(type_); }

 private:
  std::string type_;
  phi::ccl::CCLComm comm_;
  phi::stream::stream_t stream_;
  int rank_ = 0, size_ = 1;
};

std::vector<Tensor> AllReduce(const Tensor& x, int ring) {
  Tensor out = Empty(ShapeOf(x), x);
  if (x.numel() > 0) Group(x, ring).AllReduce(x, &out);
  return {out};
}

// Both streams' sums of a block in one launch of NCCL's.
std::vector<Tensor> AllReduceTwo(const Tensor& x, const Tensor& y, int ring) {
  if (x.numel() == 0 || y.numel() == 0) return {AllReduce(x, ring)[0], AllReduce(y, ring)[0]};
  Tensor out = Empty(ShapeOf(x), x), out2 = Empty(ShapeOf(y), y);
  Group group(x, ring);
  group.Together(true);
  group.AllReduce(x, &out);
  group.AllReduce(y, &out2);
  group.Together(false);
  return {out, out2};
}

// x: [...] of every rank -> [size, ...].
std::vector<Tensor> AllGather(const Tensor& x, int ring, int size) {
  Group group(x, ring);
  Require(group.size() == size, "all_gather: a group of another size");
  auto shape = ShapeOf(x);
  shape.insert(shape.begin(), size);
  Tensor out = Empty(shape, x);
  if (x.numel() > 0) group.AllGather(x, &out);
  return {out};
}

// x: [size, ...] -> part `rank` of every rank's.
std::vector<Tensor> AllToAll(const Tensor& x, int ring) {
  Group group(x, ring);
  Require(x.dims()[0] == group.size(), "all_to_all: as many parts as ranks");
  Tensor out = Empty(ShapeOf(x), x);
  if (x.numel() > 0) group.AllToAll(x, &out);
  return {out};
}

std::vector<Shape> SameShape(const Shape& x, int) { return {x}; }
std::vector<Shape> SameShapes(const Shape& x, const Shape& y, int) { return {x, y}; }
std::vector<Shape> GatheredShape(const Shape& x, int, int size) {
  Shape shape = x;
  shape.insert(shape.begin(), size);
  return {shape};
}
std::vector<DataType> SameType(const DataType& x) { return {x}; }
std::vector<DataType> SameTypes(const DataType& x, const DataType& y) { return {x, y}; }

}  // namespace
}  // namespace sd3par

PD_BUILD_OP(sd3par_all_reduce)
    .Inputs({"x"})
    .Outputs({"out"})
    .Attrs({"ring: int"})
    .SetKernelFn(PD_KERNEL(sd3par::AllReduce))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::SameShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::SameType));

PD_BUILD_OP(sd3par_all_reduce_2)
    .Inputs({"x", "y"})
    .Outputs({"out", "out2"})
    .Attrs({"ring: int"})
    .SetKernelFn(PD_KERNEL(sd3par::AllReduceTwo))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::SameShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::SameTypes));

PD_BUILD_OP(sd3par_all_gather)
    .Inputs({"x"})
    .Outputs({"out"})
    .Attrs({"ring: int", "size: int"})
    .SetKernelFn(PD_KERNEL(sd3par::AllGather))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::GatheredShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::SameType));

PD_BUILD_OP(sd3par_all_to_all)
    .Inputs({"x"})
    .Outputs({"out"})
    .Attrs({"ring: int"})
    .SetKernelFn(PD_KERNEL(sd3par::AllToAll))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::SameShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::SameType));
