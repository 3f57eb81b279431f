// Joint attention of one or two segments: kernels/attention_hopper.py where it fits, else kernels/attention.py.
#include "attention.h"

#include <map>
#include <mutex>

#include "failure.h"
#include "launch.h"
#include "plan.h"

namespace sd3par {
namespace {

constexpr int kHopper = 9, kHopperDim = 64;
constexpr std::int64_t kGroups = 2, kGroup = 64;  // warp groups of a program that multiply, and queries of each

// A segment's packed q, k and v, [R, T, 3 * heads * head_dim] or [R, T, 3, heads, head_dim], in one run.
struct Segment {
  Tensor x;
  std::int64_t rows, tokens, width;
};

struct Work {
  std::vector<Segment> segments;
  const std::vector<Target>& targets;
  std::int64_t rows, heads, dim;

  std::int64_t tokens(std::size_t i) const { return i < segments.size() ? segments[i].tokens : 0; }
};

// The driver's memory, not Paddle's: it outlives every program, and every launch leaves its counters at 0.
Address ArrivalsOn(const Gpu& gpu) {
  static std::mutex lock;
  static auto* known = new std::map<int, Address>;
  std::lock_guard<std::mutex> hold(lock);
  Address& found = (*known)[gpu.device()];
  if (found == 0) {
    auto count = static_cast<std::size_t>(kGroups * gpu.processors());
    Address made = 0;
    Must(Cuda().cuMemAlloc(&made, count * sizeof(std::int32_t)), "cuMemAlloc");
    Must(Cuda().cuMemsetD32(made, 0, count), "cuMemsetD32");
    found = made;
  }
  return found;
}

Argument MapOf(const Segment& one) { return Mapped(one.x, {one.rows, one.tokens, one.width}); }

void AddTarget(const Target& target, Arguments* arguments) {
  for (const Argument& one : {target.base, Argument(target.size), Argument(target.row), Argument(target.token)}) {
    arguments->push_back(one);
  }
}

// TMA knows no empty tensors: what is multiplied are the segments that hold tokens.
void OnHopper(const Gpu& gpu, const Work& work, const std::vector<std::size_t>& filled) {
  std::size_t one = filled.front(), two = filled.back();
  std::int64_t first = work.tokens(one), second = two != one ? work.tokens(two) : 0;
  const Tensor& like = work.segments[one].x;
  std::int64_t processors = gpu.processors(), tile = kGroups * kGroup, keys = 128;
  std::int64_t tiles = work.rows * work.heads * (DivideUp(first, tile) + DivideUp(second, tile));
  auto plan = Planned(tiles, DivideUp(first, keys) + DivideUp(second, keys), processors);
  auto programs = ProgramsOf(plan, tiles, processors);
  Tensor failed = Empty({programs, kGroups}, like, DataType::INT32);
  Shape room = {tiles - plan.whole + programs, kGroups, kGroup * work.dim + 2 * kGroup};
  Tensor parts = Empty(room, like, DataType::FLOAT32);
  Arguments arguments = {MapOf(work.segments[one]), MapOf(work.segments[two])};
  for (auto i : {one, two}) AddTarget(work.targets[i], &arguments);
  auto arrivals = reinterpret_cast<const void*>(ArrivalsOn(gpu));
  for (const auto& scratch : {Pointer(failed), Pointer(parts), Argument("i32", arrivals)}) {
    arguments.push_back(scratch);
  }
  for (auto number : {first, second, work.rows, work.heads, plan.whole, plan.share, plan.span}) {
    arguments.push_back(number);
  }
  auto& kernel = gpu.Find("_attention_hopper", arguments, {{"KEYS", keys}});
  gpu.Launch(kernel, programs, 1, 1, arguments);
}

void OnOthers(const Gpu& gpu, const Work& work) {
  const Segment& first = work.segments.front();
  const Segment& second = work.segments.back();
  Arguments arguments = {Pointer(first.x), Pointer(second.x)};
  auto inner = work.heads * work.dim;
  for (const auto* target : {&work.targets.front(), &work.targets.back()}) AddTarget(*target, &arguments);
  for (auto tokens : {work.tokens(0), work.tokens(1)}) arguments.push_back(tokens);
  for (const auto* one : {&first, &second}) {
    for (auto stride : {one->tokens * one->width, one->width, inner, work.dim}) arguments.push_back(stride);
  }
  auto& kernel = gpu.Find("_attention", arguments, {{"HEAD_DIM", work.dim}});
  auto queries = kernel["QUERIES"];
  auto blocks = DivideUp(work.tokens(0), queries) + DivideUp(work.tokens(1), queries);
  gpu.Launch(kernel, blocks, work.heads, work.rows, arguments);
}

std::vector<Tensor> Attend(const std::vector<Tensor>& segments, std::int64_t heads, std::int64_t dim) {
  std::vector<Tensor> outs;
  std::vector<Target> targets;
  for (const auto& x : segments) {
    std::int64_t tokens = x.dims()[1], width = heads * dim;
    outs.push_back(Empty({x.dims()[0], tokens, width}, x));
    targets.push_back({Pointer(outs.back()), 1, tokens * width, width});
  }
  AttendTo(Gpu(segments[0]), segments, heads, dim, targets);
  return outs;
}

std::vector<Tensor> One(const Tensor& first, int heads, int head_dim) { return Attend({first}, heads, head_dim); }

std::vector<Tensor> Two(const Tensor& first, const Tensor& second, int heads, int head_dim) {
  return Attend({first, second}, heads, head_dim);
}

std::vector<Shape> OneShape(const Shape& first, int heads, int head_dim) {
  return {{first[0], first[1], std::int64_t{heads} * head_dim}};
}

std::vector<Shape> TwoShapes(const Shape& first, const Shape& second, int heads, int head_dim) {
  return {OneShape(first, heads, head_dim)[0], OneShape(second, heads, head_dim)[0]};
}

std::vector<DataType> OneType(const DataType& first) { return {first}; }
std::vector<DataType> TwoTypes(const DataType& first, const DataType& second) { return {first, second}; }

}  // namespace

void AttendTo(const Gpu& gpu, const std::vector<Tensor>& segments, std::int64_t heads, std::int64_t dim,
              const std::vector<Target>& targets) {
  Work work{{}, targets, segments[0].dims()[0], heads, dim};
  std::vector<std::size_t> filled;
  for (const auto& x : segments) {
    Segment one{x, x.dims()[0], x.dims()[1], 3 * heads * dim};
    Require(one.rows == work.rows && x.numel() == one.rows * one.tokens * one.width,
            "attention: segments of [R, T, 3 * heads * head_dim] of the same rows");
    if (one.tokens > 0) filled.push_back(work.segments.size());
    work.segments.push_back(one);
  }
  if (filled.empty() || work.rows == 0) return;
  if (gpu.architecture() / 10 == kHopper && dim == kHopperDim) {
    OnHopper(gpu, work, filled);
  } else {
    OnOthers(gpu, work);
  }
}

}  // namespace sd3par

PD_BUILD_OP(sd3par_attention_1)
    .Inputs({"first"})
    .Outputs({"out"})
    .Attrs({"heads: int", "head_dim: int"})
    .SetKernelFn(PD_KERNEL(sd3par::One))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::OneShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::OneType));

PD_BUILD_OP(sd3par_attention_2)
    .Inputs({"first", "second"})
    .Outputs({"out", "out2"})
    .Attrs({"heads: int", "head_dim: int"})
    .SetKernelFn(PD_KERNEL(sd3par::Two))
    .SetInferShapeFn(PD_INFER_SHAPE(sd3par::TwoShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(sd3par::TwoTypes));
