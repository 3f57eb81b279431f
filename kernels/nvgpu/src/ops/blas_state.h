// What cuBLAS and cuBLASLt need per device and stream. Only blas.cc and blaslt*.cc include this.
#pragma once
#include <cublasLt.h>
#include <cublas_v2.h>

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "../runtime/pieces.h"
#include "blas.h"

namespace nvgpu {

void CheckBlas(cublasStatus_t status, const char* what);
cudaDataType_t CudaType(Dtype dtype);

// Enough for every kernel on Hopper, by NVIDIA's advice for that card.
constexpr size_t kBlasWorkspace = 32 << 20;
constexpr size_t kPieces = 8 << 20;  // for recorded products, behind it

// cuBLASLt's descriptors and choice for one product, destroyed with it.
struct LtPlan {
  LtPlan() = default;
  LtPlan(const LtPlan&) = delete;
  LtPlan& operator=(const LtPlan&) = delete;
  ~LtPlan();

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  size_t workspace = 0;  // bytes that the algorithm needs
  bool found = false;
};

// dtype * kKindsOfDtype + transposes and epilogue; m, n, k; alignments of y, x and out in bytes; their pitches.
constexpr int kKindsOfDtype = 16;
using LtKey = std::tuple<int, int64_t, int64_t, int64_t, uint32_t, uint32_t, uint32_t, int64_t, int64_t, int64_t>;

// One per device and stream: work on one stream is in order, so its workspace serves one kernel at a time.
// Never destroyed: at process exit the driver may be gone before us.
struct BlasState {
  explicit BlasState(cudaStream_t stream);

  std::mutex mutex;  // held while calls are made with the handles and plans
  cublasHandle_t handle = nullptr;
  cublasLtHandle_t lt = nullptr;
  void* workspace = nullptr;
  std::unique_ptr<Pieces> pieces;
  std::map<LtKey, std::unique_ptr<LtPlan>> plans;
};

BlasState& StateOf(cudaStream_t stream);

// One product, all but its algorithm.
struct LtCall {
  BlasState& state;
  LtPlan& plan;
  const void *x, *y, *bias;
  void* out;
  cudaStream_t stream;

  // On the state's own workspace.
  cublasStatus_t Run(const cublasLtMatmulAlgo_t& algorithm) const {
    return Run(algorithm, state.workspace, kBlasWorkspace);
  }
  cublasStatus_t Run(const cublasLtMatmulAlgo_t& algorithm, void* workspace, size_t bytes) const;
};

}  // namespace nvgpu
