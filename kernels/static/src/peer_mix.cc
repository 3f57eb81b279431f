// What sd3par/peer_mix.py does eagerly: attention stores what this rank's heads make of a token to the rank that norms it.
#include "attention.h"
#include "launch.h"
#include "peers.h"

namespace sd3par {
namespace {

// What all ranks' heads make of this rank's tokens, [R, size, dim], and where this rank's heads of each go.
struct Room {
  Tensor out;
  Target target;
};

Room RoomFor(const Gpu& gpu, const Peers& peers, const Tensor& x, std::int64_t dim, std::int64_t start,
             std::int64_t* used) {
  const auto& pool = peers.pools[kMixed];
  std::int64_t rows = x.dims()[0], size = TokensFor(0, peers.size, x.dims()[1]).size;
  auto place = pool.Take(rows * size * dim, used);
  auto bytes = static_cast<std::int64_t>(phi::SizeOf(x.dtype()));
  std::vector<std::int64_t> addresses;
  for (auto base : pool.bases) addresses.push_back(base + (place + start) * bytes);
  Argument base{"i64", reinterpret_cast<const void*>(NumbersOn(gpu, addresses))};
  return {Over(peers, pool, place, {rows, size, dim}, x), {base, size, size * dim, dim}};
}

// The first two segments together, a third by itself.
std::vector<Tensor> Mix(const std::vector<Tensor>& segments, int heads, int head_dim, int dim, int start) {
  Gpu gpu(segments[0]);
  const auto& peers = ThePeers();
  std::vector<Tensor> outs;
  std::vector<Target> targets;
  std::int64_t used = 0;
  for (const auto& x : segments) {
    Room room = RoomFor(gpu, peers, x, dim, start, &used);
    outs.push_back(room.out);
    targets.push_back(room.target);
  }
  AttendTo(gpu, {segments[0], segments[1]}, heads, head_dim, {targets[0], targets[1]});
  if (segments.size() == 3) AttendTo(gpu, {segments[2]}, heads, head_dim, {targets[2]});
  Meet(gpu, peers);
  return outs;
}

std::vector<Tensor> Two(const Tensor& first, const Tensor& second, int heads, int head_dim, int dim, int start) {
  return Mix({first, second}, heads, head_dim, dim, start);
}
std::vector<Tensor> Three(const Tensor& first, const Tensor& second, const Tensor& third, int heads, int head_dim,
                          int dim, int start) {
  return Mix({first, second, third}, heads, head_dim, dim, start);
}

std::vector<Shape> TwoShapes(const Shape& first, const Shape&, int, int, int dim, int) {
  return std::vector<Shape>(2, {first[0], -1, dim});
}
std::vector<Shape> ThreeShapes(const Shape& first, const Shape&, const Shape&, int, int, int dim, int) {
  return std::vector<Shape>(3, {first[0], -1, dim});
}

std::vector<DataType> TwoTypes(const DataType& first, const DataType& second) { return {first, second}; }
std::vector<DataType> ThreeTypes(const DataType& first, const DataType& second, const DataType& third) {
  return {first, second, third};
}

}  // namespace
}  // namespace sd3par

PD_BUILD_OP(sd3par_peer_mix_2)
    .Inputs({"first", "second"})
    .Outputs({"out", "out2"})
    .Attrs({"heads: int", "head_dim: int", "dim: int", "start: int"})
    .SetKernelFn(PD_KERNEL(sd3par::Two))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::TwoShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::TwoTypes));

PD_BUILD_OP(sd3par_peer_mix_3)
    .Inputs({"first", "second", "third"})
    .Outputs({"out", "out2", "out3"})
    .Attrs({"heads: int", "head_dim: int", "dim: int", "start: int"})
    .SetKernelFn(PD_KERNEL(sd3par::Three))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::ThreeShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::ThreeTypes));
