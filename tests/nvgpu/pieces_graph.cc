// kernels/nvgpu/src/runtime/pieces.cc on graphs of this file's own, in place of the CUDA runtime's: what it leaves.
// Prints a line for what is wrong, and "right" at the end; tests/nvgpu/test_pieces.py builds and runs it.
#include "pieces.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

struct CUgraphNode_st {
  std::string name;
  cudaGraphNodeType type;
  cudaMemsetParams set;
  std::vector<CUgraphNode_st*> before;
  bool programmatic = false;  // the edges to it
};
struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};

namespace {

cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
unsigned long long capture = 0;
CUgraph_st* current = nullptr;
char memory[4096], elsewhere[64];

cudaError_t Give(const std::vector<CUgraphNode_st*>& found, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) std::copy_n(found.begin(), std::min(*count, found.size()), nodes);
  *count = found.size();
  return cudaSuccess;
}

CUgraphNode_st* Add(const char* name, cudaGraphNodeType type, std::initializer_list<CUgraphNode_st*> before,
                    char* memory = nullptr, size_t bytes = 0, unsigned value = 0) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->name = name, node->type = type, node->before = before, node->set = {};
  node->set.dst = memory, node->set.elementSize = 1, node->set.width = bytes, node->set.height = 1;
  node->set.value = value;
  current->nodes.push_back(std::move(node));
  return current->nodes.back().get();
}
CUgraphNode_st* Kernel(const char* name, std::initializer_list<CUgraphNode_st*> before) {
  return Add(name, cudaGraphNodeTypeKernel, before);
}
CUgraphNode_st* Zero(const char* name, std::initializer_list<CUgraphNode_st*> before, char* memory, size_t bytes,
                     unsigned value = 0) {
  return Add(name, cudaGraphNodeTypeMemset, before, memory, bytes, value);
}

// "A; B after A; ...", sorted.
std::string Text(const CUgraph_st& graph) {
  std::vector<std::string> lines;
  for (const auto& node : graph.nodes) {
    std::vector<std::string> names;
    for (auto* before : node->before) names.push_back(before->name);
    std::sort(names.begin(), names.end());
    std::string line = node->name;
    for (const auto& name : names) line += (line == node->name ? " after " : " ") + name;
    lines.push_back(line);
  }
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const auto& line : lines) text += (text.empty() ? "" : "; ") + line;
  return text;
}

void Same(const std::string& got, const std::string& want) {
  if (got == want) return;
  std::printf("got  %s\nwant %s\n", got.c_str(), want.c_str());
  std::exit(1);
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "a call that this file makes fail"; }

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* now, unsigned long long* id, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *now = status, *id = capture;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  std::vector<CUgraphNode_st*> all;
  for (const auto& node : graph->nodes) all.push_back(node.get());
  return Give(all, nodes, count);
}

cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  std::vector<CUgraphNode_st*> roots;
  for (const auto& node : graph->nodes)
    if (node->before.empty()) roots.push_back(node.get());
  return Give(roots, nodes, count);
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = node->type;
  return cudaSuccess;
}

cudaError_t cudaGraphMemsetNodeGetParams(cudaGraphNode_t node, cudaMemsetParams* set) {
  *set = node->set;
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* nodes, cudaGraphEdgeData* edges,
                                         size_t* count) {
  for (size_t i = 0; edges != nullptr && i < *count; ++i) edges[i] = {}, edges[i].type = node->programmatic;
  return Give(node->before, nodes, count);
}

cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t node, cudaGraphNode_t* nodes, cudaGraphEdgeData* edges,
                                           size_t* count) {
  std::vector<CUgraphNode_st*> after;
  for (const auto& one : current->nodes)
    if (std::count(one->before.begin(), one->before.end(), node)) after.push_back(one.get());
  for (size_t i = 0; edges != nullptr && i < *count; ++i) edges[i] = {}, edges[i].type = after[i]->programmatic;
  return Give(after, nodes, count);
}

cudaError_t cudaGraphDestroyNode(cudaGraphNode_t node) {
  for (const auto& one : current->nodes) {
    auto& before = one->before;
    before.erase(std::remove(before.begin(), before.end(), node), before.end());
  }
  auto& nodes = current->nodes;
  nodes.erase(std::find_if(nodes.begin(), nodes.end(), [&](const auto& one) { return one.get() == node; }));
  return cudaSuccess;
}

cudaError_t cudaGraphAddDependencies(cudaGraph_t, const cudaGraphNode_t* from, const cudaGraphNode_t* to,
                                     const cudaGraphEdgeData*, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    auto& before = to[i]->before;
    if (std::count(before.begin(), before.end(), from[i])) return cudaErrorInvalidValue;  // as CUDA has it
    before.push_back(from[i]);
  }
  return cudaSuccess;
}

cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t* made, cudaGraph_t, const cudaGraphNode_t*, size_t,
                                   const cudaMemsetParams* set) {
  char name[64];
  std::snprintf(name, sizeof(name), "zero %ld+%zu", static_cast<long>(static_cast<char*>(set->dst) - memory),
                set->width * set->elementSize);
  *made = Zero(name, {}, static_cast<char*>(set->dst), set->width);
  return cudaSuccess;
}

}  // extern "C"

namespace {

template <typename Build>
void Case(Build build, const char* want) {
  CUgraph_st graph;
  current = &graph;
  build();
  nvgpu::ZeroPiecesOnce(&graph);
  Same(Text(graph), want);
}

void Graphs() {
  Case([] { Kernel("B", {Kernel("A", {})}); }, "A; B after A");
  Case(  // a row of products
      [] {
        auto* b = Kernel("B", {Zero("m", {Kernel("A", {})}, memory, 4)});
        Kernel("D", {Zero("n", {Kernel("C", {b})}, memory + 2048, 4)});
      },
      "A after zero 0+2052; B after A; C after B; D after C; zero 0+2052");
  Case(  // a memset that comes first, and one behind two branches that its reader waits for, too
      [] {
        auto* a = Kernel("A", {Zero("m", {}, memory + 1024, 4)});
        auto *b = Kernel("B", {a}), *c = Kernel("C", {a});
        Kernel("D", {Zero("n", {b, c}, memory + 2048, 8), b});
      },
      "A after zero 1024+1032; B after A; C after A; D after B C; zero 1024+1032");
  Case(  // a piece that is zeroed again
      [] {
        auto* a = Kernel("A", {Zero("m", {}, memory, 8)});
        auto* b = Kernel("B", {Zero("n", {a}, memory + 4, 8)});
        Kernel("C", {Zero("o", {b}, memory + 1024, 4)});
      },
      "A after m; B after n; C after B; m after zero 1024+4; n after A; zero 1024+4");
  Case(  // what stays: other memory, another value, an edge with a meaning
      [] {
        auto* b = Kernel("B", {Zero("m", {Kernel("A", {})}, elsewhere, 4)});
        auto* c = Kernel("C", {Zero("n", {b}, memory, 4, 1)});
        Kernel("D", {Zero("o", {c}, memory, 4)})->programmatic = true;
      },
      "A; B after m; C after n; D after o; m after A; n after B; o after C");
}

void Taking(nvgpu::Pieces* pieces) {
  auto take = [&](std::initializer_list<size_t> sizes) {
    std::string text;
    for (size_t bytes : sizes) {
      auto* piece = static_cast<char*>(pieces->Take(nullptr, bytes));
      text += (text.empty() ? "" : " ") + (piece == nullptr ? "none" : std::to_string(piece - memory));
    }
    return text;
  };
  Same(take({4}), "none");  // nothing is recorded
  status = cudaStreamCaptureStatusActive, capture = 7;
  Same(take({4, 2000, 1025, 1024, 1}), "0 1024 none 3072 none");
  capture = 8;
  Same(take({4096, 1}), "0 none");
}

}  // namespace

int main() {
  nvgpu::Pieces pieces(memory, sizeof(memory));
  Graphs();
  Taking(&pieces);
  std::puts("right");
}
