// Memory of recorded products: each takes a piece of its own, and what they want zeroed is zeroed once, at the graph's
// begin. cuBLASLt's kernels that share out tiles while they run count them in memory that a memset before each clears;
// inside a graph such a memset takes 5 us of the card between two kernels (H200), which take none otherwise.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

namespace nvgpu {

// One per workspace, used under its owner's lock. Graphs recorded from one stream take the same pieces: their replays
// must be in order, as they are on the stream that launches them. Products on a side stream that a graph took in would
// share theirs with those of other graphs, as they share the workspace; there are none. Never destroyed while a graph
// can be captured.
class Pieces {
 public:
  Pieces(void* memory, size_t bytes);

  // A piece for what `stream` is recording, or nullptr: it records nothing, or this graph has taken all there is.
  void* Take(cudaStream_t stream, size_t bytes);

 private:
  char* memory_;
  size_t bytes_, taken_ = 0;
  unsigned long long capture_ = 0;  // whose pieces are taken
};

// Takes the memsets to zero in any pieces, each of which is zeroed once, out of `graph`, which is captured and not
// instantiated; one for the pieces of each stream comes before everything else in it. After an exception the graph is
// of no use.
void ZeroPiecesOnce(cudaGraph_t graph);

}  // namespace nvgpu
