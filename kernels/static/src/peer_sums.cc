// What sd3par/peer_sums.py does eagerly: products store to each rank its tokens of their parts, norms go to all.
#include <map>
#include <mutex>
#include <tuple>

#include "failure.h"
#include "launch.h"
#include "lines.h"
#include "peers.h"
#include "streams.h"
#include "tiles.h"

namespace sd3par {
namespace {

constexpr std::int64_t kStep = 64;

// x: [R, t, D] -> this rank's tokens, [R, held, D].
std::vector<Tensor> Held(const Tensor& x) {
  Gpu gpu(x);
  const auto& peers = ThePeers();
  auto shape = ShapeOf(x);
  std::int64_t rows = shape[0], length = shape[1], dim = shape[2];
  auto mine = TokensFor(peers.rank, peers.size, length);
  Tensor out = Empty({rows, mine.length, dim}, x);
  for (std::int64_t row = 0; row < rows; ++row) {
    gpu.CopyPart(x, (row * length + mine.start) * dim, &out, row * mine.length * dim, mine.length * dim);
  }
  return {out};
}

// One product: x: [R, t, K] by weight [K, D].
struct Operand {
  const Tensor &x, &weight, &bias;

  std::int64_t rows() const { return x.dims()[0]; }
  std::int64_t length() const { return x.dims()[1]; }
  std::int64_t terms() const { return weight.dims()[0]; }
  std::int64_t dim() const { return weight.dims()[1]; }
};

// Where the rows of a product go: those of each rank's tokens to it, [mp, R, size, D] there from `place` on.
Rectangles RectanglesOf(const Operand& one, const Peers& peers, std::int64_t place) {
  Rectangles made;
  auto bytes = static_cast<std::int64_t>(phi::SizeOf(one.x.dtype()));
  const auto& bases = peers.pools[kParts].bases;
  for (std::int64_t to = 0; to < peers.size; ++to) {
    auto tokens = TokensFor(to, peers.size, one.length());
    for (std::int64_t row = 0; row < one.rows() && tokens.length > 0; ++row) {
      std::int64_t number = place + (peers.rank * one.rows() + row) * tokens.size * one.dim();
      made.push_back({row * one.length() + tokens.start, tokens.length, bases[to] + number * bytes});
    }
  }
  return made;
}

struct Table {
  Address lines = 0;
  std::int64_t programs = 0, stages = 0;
};

// As the pair's in linear_pair.cc: kept, and first made outside of a recording.
Table TableFor(const Gpu& gpu, const std::vector<Rectangles>& streams, std::int64_t terms, std::int64_t columns) {
  static std::mutex lock;
  static auto* known = new std::map<std::vector<std::int64_t>, Table>;
  std::vector<std::int64_t> key = {gpu.device(), terms, columns};
  for (const auto& stream : streams) {
    key.push_back(static_cast<std::int64_t>(stream.size()));
    for (const auto& one : stream) key.insert(key.end(), {one.row, one.rows, one.address});
  }
  std::lock_guard<std::mutex> hold(lock);
  Table& found = (*known)[key];
  if (found.programs == 0) {
    auto made = TilesOf(streams, terms, columns, gpu.processors());
    std::vector<std::int64_t> numbers;
    for (const auto& line : made.lines) numbers.insert(numbers.end(), line.begin(), line.end());
    found = {NumbersOn(gpu, numbers), made.programs, made.shape.stages};
  }
  return found;
}

void Store(const Gpu& gpu, const std::vector<Operand>& products, std::vector<Rectangles> streams) {
  std::vector<std::int64_t> first;
  for (auto& stream : streams) {
    first.push_back(stream[0].address);
    for (auto& one : stream) one.address -= first.back();
  }
  auto table = TableFor(gpu, streams, products[0].terms(), products[0].dim());
  Arguments arguments;
  for (std::size_t i : {std::size_t{0}, products.size() - 1}) {
    const auto& one = products[i];
    Require(one.terms() % kStep == 0 && one.dim() % kStep == 0, "peer_add: columns in whole runs of 64");
    arguments.push_back(Mapped(one.x, {one.rows() * one.length(), one.terms()}));
    arguments.push_back(Mapped(one.weight, {one.terms(), one.dim()}));
    arguments.push_back(Pointer(one.bias));
    arguments.push_back(first[i]);
  }
  arguments.push_back({"i64", reinterpret_cast<const void*>(table.lines)});
  Constants constants = {{"STAGES", table.stages}, {"GELU", 0}, {"BIASED", 1}, {"LEAD", LeadFor(products[0].terms())}};
  auto& kernel = gpu.Find("_linear_hopper", arguments, constants);
  gpu.Launch(kernel, table.programs, 1, 1, arguments);
}

// Where a rank's parts of a stream are stored, [mp, R, size, D] on each rank.
struct Room {
  Tensor out;
  std::int64_t place, size;
};

Room RoomFor(const Peers& peers, const Tensor& like, std::int64_t rows, std::int64_t length, std::int64_t dim,
             std::int64_t* used) {
  auto size = TokensFor(0, peers.size, length).size;
  Shape shape = {peers.size, rows, size, dim};
  auto place = peers.pools[kParts].Take(Product(shape), used);
  return {Over(peers, peers.pools[kParts], place, shape, like), place, size};
}

// Each product's parts from all ranks, [mp, R, size, D], of this rank's tokens.
std::vector<Tensor> Add(const std::vector<Operand>& products) {
  Gpu gpu(products[0].x);
  const auto& peers = ThePeers();
  std::vector<Tensor> outs;
  std::vector<Rectangles> streams;
  std::int64_t used = 0;
  for (const auto& one : products) {
    Room room = RoomFor(peers, one.x, one.rows(), one.length(), one.dim(), &used);
    outs.push_back(room.out);
    streams.push_back(RectanglesOf(one, peers, room.place));
  }
  Store(gpu, products, streams);
  Meet(gpu, peers);
  return outs;
}

std::vector<Tensor> AddOne(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return Add({Operand{x, weight, bias}});
}

std::vector<Tensor> AddTwo(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& x2,
                           const Tensor& weight2, const Tensor& bias2) {
  return Add({Operand{x, weight, bias}, Operand{x2, weight2, bias2}});
}

// Where a stream's norms lie, one behind the other, of [R, length, D].
Norms LaidOut(const Gpu& gpu, const Peers& peers, const Pool& pool, const Tensor& x, std::int64_t length, int count,
              std::int64_t* used) {
  auto shape = ShapeOf(x);
  std::int64_t rows = shape[0], dim = shape[2], bytes = static_cast<std::int64_t>(phi::SizeOf(x.dtype()));
  auto mine = TokensFor(peers.rank, peers.size, length);
  Norms norms;
  for (int i = 0; i < count; ++i) {
    auto place = pool.Take(rows * length * dim, used);
    norms.outs.push_back(Over(peers, pool, place, {rows, length, dim}, x));
    std::vector<std::int64_t> addresses;
    for (auto base : pool.bases) addresses.push_back(base + (place + mine.start * dim) * bytes);
    norms.targets.push_back({"i64", reinterpret_cast<const void*>(NumbersOn(gpu, addresses))});
  }
  norms.row = length * dim;
  return norms;
}

// As adaln of this rank's tokens, whose branches come padded, or in parts; norms of all tokens. like, like2: [R, length, ...].
std::vector<Tensor> Norm(const Tensor& x, const Maybe& branch, const Maybe& x2, const Maybe& branch2,
                         const Tensor& like, const Maybe& like2, const std::vector<Tensor>& bases,
                         const std::vector<int>& lines, const std::vector<int>& norms, bool last) {
  Gpu gpu(x);
  const auto& peers = ThePeers();
  const auto& pool = peers.pools[last ? kLast : kNorms];
  Streams streams{{x}, {branch}, {}};
  if (x2) streams.x.push_back(*x2), streams.branches.push_back(branch2);
  std::int64_t used = 0;
  for (std::size_t i = 0; i < streams.x.size(); ++i) {
    auto length = (i == 0 ? like : *like2).dims()[1];
    streams.norms.push_back(LaidOut(gpu, peers, pool, streams.x[i], length, norms[i], &used));
  }
  bool parts = branch && branch->dims().size() == 4;
  Constants constants = {{"PARTS", parts ? peers.size : 1}, {"COPIES", peers.size}};
  auto made = RunStreams(gpu, {lines, norms, branch.is_initialized()}, streams, bases, constants);
  Meet(gpu, peers);
  return made;
}

std::vector<Shape> HeldShape(const Shape& x) { return {{x[0], -1, x[2]}}; }
Shape PartsShape(const Shape& x, const Shape& weight) { return {-1, x[0], -1, weight[1]}; }
std::vector<Shape> AddOneShape(const Shape& x, const Shape& weight, const Shape&) { return {PartsShape(x, weight)}; }
std::vector<Shape> AddTwoShapes(const Shape& x, const Shape& weight, const Shape&, const Shape& x2,
                                const Shape& weight2, const Shape&) {
  return {PartsShape(x, weight), PartsShape(x2, weight2)};
}

std::vector<Shape> NormShapes(const Shape& x, const MaybeShape& branch, const MaybeShape& x2, const MaybeShape&,
                              const Shape& like, const MaybeShape& like2, const std::vector<Shape>&,
                              const std::vector<int>&, const std::vector<int>& norms, bool) {
  std::vector<Shape> sums, normed;
  for (std::size_t i = 0; i < norms.size(); ++i) {
    const Shape& own = i == 0 ? x : *x2;
    if (branch) sums.push_back(own);
    normed.insert(normed.end(), norms[i], {own[0], (i == 0 ? like : *like2)[1], own[2]});
  }
  sums.insert(sums.end(), normed.begin(), normed.end());
  return sums;
}

std::vector<DataType> OneType(const DataType& x) { return {x}; }
std::vector<DataType> AddOneType(const DataType& x, const DataType&, const DataType&) { return {x}; }
std::vector<DataType> AddTwoTypes(const DataType& x, const DataType&, const DataType&, const DataType& x2,
                                  const DataType&, const DataType&) {
  return {x, x2};
}
template <int outputs>
std::vector<DataType> NormTypes(const DataType& x, const MaybeType&, const MaybeType&, const MaybeType&,
                                const DataType&, const MaybeType&, const std::vector<DataType>&) {
  return std::vector<DataType>(outputs, x);
}

}  // namespace
}  // namespace sd3par

PD_BUILD_OP(sd3par_peer_held)
    .Inputs({"x"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(sd3par::Held))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::HeldShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::OneType));

PD_BUILD_OP(sd3par_peer_add_1)
    .Inputs({"x", "weight", "bias"})
    .Outputs({"parts"})
    .SetKernelFn(PD_KERNEL(sd3par::AddOne))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::AddOneShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::AddOneType));

PD_BUILD_OP(sd3par_peer_add_2)
    .Inputs({"x", "weight", "bias", "x2", "weight2", "bias2"})
    .Outputs({"parts", "parts2"})
    .SetKernelFn(PD_KERNEL(sd3par::AddTwo))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::AddTwoShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::AddTwoTypes));

#define SD3PAR_PEER_NORM(count, ...)                                                                   \
  PD_BUILD_OP(sd3par_peer_norm_##count)                                                                \
      .Inputs({"x", paddle::Optional("branch"), paddle::Optional("x2"), paddle::Optional("branch2"), "like", \
               paddle::Optional("like2"), paddle::Vec("bases")})                                       \
      .Outputs({__VA_ARGS__})                                                                          \
      .Attrs({"lines: std::vector<int>", "norms: std::vector<int>", "last: bool"})                     \
      .SetKernelFn(PD_KERNEL(sd3par::Norm))                                                            \
      .SetInferShapeFn(PD_INFER_SHAPE(sd3par::NormShapes))                                             \
      .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::NormTypes<count>))

SD3PAR_PEER_NORM(2, "a", "b");
SD3PAR_PEER_NORM(3, "a", "b", "c");
SD3PAR_PEER_NORM(4, "a", "b", "c", "d");
SD3PAR_PEER_NORM(5, "a", "b", "c", "d", "e");
