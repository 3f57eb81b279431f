// Which of cuBLASLt's algorithms a product gets: one that its heuristics name, the fastest of them where that is worth
// the time to find out.
#pragma once
#include "blas_state.h"

namespace nvgpu {

// Sets `algorithm`, the same one for all equal products of this process, whatever the stream; a product that
// `call` describes, of LtKey `key`. Returns false where cuBLASLt has none.
//
// Outside of captures a product of 1 GFLOP or more is timed once: this waits for the stream, then runs candidates on
// the call's own memory. What was found is kept for the user's later processes (blaslt_file.h), and of processes that
// start together one times and the others take what it found, so that all compute the same.
bool ChooseAlgorithm(const LtCall& call, const LtKey& key, const Scratch& scratch, cublasLtMatmulAlgo_t* algorithm);

}  // namespace nvgpu
