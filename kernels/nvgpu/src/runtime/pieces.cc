#include "pieces.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "runtime.h"

namespace nvgpu {
namespace {

constexpr size_t kAligned = 1024;

struct Span {
  char *begin, *end;
};

std::mutex& Guard() {
  static auto& guard = *new std::mutex;
  return guard;
}
std::vector<Span>& Registered() {  // under the guard
  static auto& spans = *new std::vector<Span>;
  return spans;
}

// A node and those next to it. `plain`: no edge to or from it has a meaning of its own, as programmatic launches have.
struct Place {
  std::vector<cudaGraphNode_t> before, after;
  bool plain = true;
};

using Neighbours = cudaError_t (*)(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t*);

std::vector<cudaGraphNode_t> Ask(Neighbours ask, cudaGraphNode_t node, bool* plain) {
  size_t count = 0;
  Must(ask(node, nullptr, nullptr, &count), "cudaGraphNodeGetDependencies");
  std::vector<cudaGraphNode_t> nodes(count);
  std::vector<cudaGraphEdgeData> edges(count);
  if (count > 0) Must(ask(node, nodes.data(), edges.data(), &count), "cudaGraphNodeGetDependencies");
  for (const auto& edge : edges) *plain = *plain && edge.from_port == 0 && edge.to_port == 0 && edge.type == 0;
  return nodes;
}

Place PlaceOf(cudaGraphNode_t node) {
  Place place;
  place.before = Ask(cudaGraphNodeGetDependencies, node, &place.plain);
  place.after = Ask(cudaGraphNodeGetDependentNodes, node, &place.plain);
  return place;
}

std::vector<cudaGraphNode_t> Nodes(cudaGraph_t graph) {
  size_t count = 0;
  Must(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
  std::vector<cudaGraphNode_t> nodes(count);
  if (count > 0) Must(cudaGraphGetNodes(graph, nodes.data(), &count), "cudaGraphGetNodes");
  return nodes;
}

void Link(cudaGraph_t graph, cudaGraphNode_t from, cudaGraphNode_t to) {
  Must(cudaGraphAddDependencies(graph, &from, &to, nullptr, 1), "cudaGraphAddDependencies");
}

// What waited for the node waits for what it waited for.
void Remove(cudaGraph_t graph, cudaGraphNode_t node, const Place& place) {
  Must(cudaGraphDestroyNode(node), "cudaGraphDestroyNode");
  for (cudaGraphNode_t after : place.after) {
    bool plain = true;
    const auto known = Ask(cudaGraphNodeGetDependencies, after, &plain);
    for (cudaGraphNode_t before : place.before)
      if (std::find(known.begin(), known.end(), before) == known.end()) Link(graph, before, after);
  }
}

// What a node sets to zero, empty for all others.
Span Zeroed(cudaGraphNode_t node) {
  cudaGraphNodeType type;
  Must(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
  if (type != cudaGraphNodeTypeMemset) return {};
  cudaMemsetParams set = {};
  Must(cudaGraphMemsetNodeGetParams(node, &set), "cudaGraphMemsetNodeGetParams");
  if (set.value != 0 || set.height != 1) return {};
  auto begin = static_cast<char*>(set.dst);
  return {begin, begin + set.width * set.elementSize};
}

// The memory whose pieces a span lies in, or nullptr.
char* MemoryOf(const Span& span, const std::vector<Span>& registered) {
  for (const Span& memory : registered)
    if (span.begin != span.end && memory.begin <= span.begin && span.end <= memory.end) return memory.begin;
  return nullptr;
}

// A memset to zero in a piece, and the memory that the piece is of.
struct Zero {
  cudaGraphNode_t node;
  Span span;
  char* memory;
};

std::vector<Zero> Found(cudaGraph_t graph) {
  std::vector<Span> registered;
  {
    std::lock_guard<std::mutex> hold(Guard());
    registered = Registered();
  }
  std::vector<Zero> found;
  for (cudaGraphNode_t node : Nodes(graph)) {
    const Span span = Zeroed(node);
    char* const memory = MemoryOf(span, registered);
    if (memory != nullptr) found.push_back({node, span, memory});
  }
  return found;
}

// Those that zero what no other one does: what is zeroed twice is written to in between.
std::vector<Zero> Alone(const std::vector<Zero>& all) {
  std::vector<Zero> alone;
  for (const Zero& one : all) {
    auto meets = [&](const Zero& other) {
      return one.node != other.node && one.span.begin < other.span.end && other.span.begin < one.span.end;
    };
    if (std::none_of(all.begin(), all.end(), meets)) alone.push_back(one);
  }
  return alone;
}

void ZeroFirst(cudaGraph_t graph, const Span& span) {
  size_t count = 0;
  Must(cudaGraphGetRootNodes(graph, nullptr, &count), "cudaGraphGetRootNodes");
  std::vector<cudaGraphNode_t> roots(count);
  Must(cudaGraphGetRootNodes(graph, roots.data(), &count), "cudaGraphGetRootNodes");
  cudaMemsetParams set = {};
  set.dst = span.begin, set.elementSize = 1, set.width = span.end - span.begin, set.height = 1;
  cudaGraphNode_t node = nullptr;
  Must(cudaGraphAddMemsetNode(&node, graph, nullptr, 0, &set), "cudaGraphAddMemsetNode");
  for (cudaGraphNode_t root : roots) Link(graph, node, root);
}

}  // namespace

Pieces::Pieces(void* memory, size_t bytes) : memory_(static_cast<char*>(memory)), bytes_(bytes) {
  std::lock_guard<std::mutex> hold(Guard());
  Registered().push_back({memory_, memory_ + bytes_});
}

void* Pieces::Take(cudaStream_t stream, size_t bytes) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  Must(cudaStreamGetCaptureInfo(stream, &status, &capture), "cudaStreamGetCaptureInfo");
  if (status != cudaStreamCaptureStatusActive) return nullptr;
  if (capture != capture_) capture_ = capture, taken_ = 0;
  if (bytes > bytes_ - taken_) return nullptr;
  void* piece = memory_ + taken_;
  taken_ = std::min(bytes_, (taken_ + bytes + kAligned - 1) / kAligned * kAligned);
  return piece;
}

void ZeroPiecesOnce(cudaGraph_t graph) {
  std::map<char*, Span> zeroed;  // of each memory, from the first such piece to the end of the last
  for (const auto& [node, span, memory] : Alone(Found(graph))) {
    const Place place = PlaceOf(node);
    if (!place.plain) continue;
    Remove(graph, node, place);
    auto [found, fresh] = zeroed.emplace(memory, span);
    if (!fresh) found->second = {std::min(found->second.begin, span.begin), std::max(found->second.end, span.end)};
  }
  for (const auto& [memory, span] : zeroed) ZeroFirst(graph, span);
}

}  // namespace nvgpu
