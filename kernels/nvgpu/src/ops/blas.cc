#include "blas.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "../runtime/lazy.h"
#include "../runtime/runtime.h"
#include "blas_state.h"

namespace nvgpu {

void CheckBlas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string("nvgpu: ") + what + ": " + LAZY(Cublas, cublasGetStatusString)(status));
}

cudaDataType_t CudaType(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return CUDA_R_32F;
    case Dtype::kFloat16: return CUDA_R_16F;
    case Dtype::kBFloat16: return CUDA_R_16BF;
    case Dtype::kFloat64: return CUDA_R_64F;
    default: throw std::runtime_error("nvgpu: matrix product: dtype not supported");
  }
}

BlasState::BlasState(cudaStream_t stream) {
  RelaxedCapture relaxed;
  if (cudaMalloc(&workspace, kBlasWorkspace + kPieces) != cudaSuccess)
    throw std::runtime_error("nvgpu: no memory for cuBLAS");
  CheckBlas(LAZY(Cublas, cublasCreate_v2)(&handle), "cublasCreate");
  CheckBlas(LAZY(Cublas, cublasSetStream_v2)(handle, stream), "cublasSetStream");
  // After the stream: setting a stream takes the workspace away again.
  CheckBlas(LAZY(Cublas, cublasSetWorkspace_v2)(handle, workspace, kBlasWorkspace), "cublasSetWorkspace");
  auto mode = static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  CheckBlas(LAZY(Cublas, cublasSetMathMode)(handle, mode), "cublasSetMathMode");
  CheckBlas(LAZY(CublasLt, cublasLtCreate)(&lt), "cublasLtCreate");
  pieces = std::make_unique<Pieces>(static_cast<char*>(workspace) + kBlasWorkspace, kPieces);
}

BlasState& StateOf(cudaStream_t stream) {
  static auto& guard = *new std::mutex;
  static auto& states = *new std::map<std::pair<int, cudaStream_t>, std::unique_ptr<BlasState>>;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) throw std::runtime_error("nvgpu: matrix product without a current GPU");
  std::lock_guard<std::mutex> lock(guard);
  auto& state = states[{device, stream}];
  if (!state) state = std::make_unique<BlasState>(stream);
  return *state;
}

// cuBLAS is column-major: there x is its own transpose, and out^T = op(y)^T op(x)^T is computed, y first.
void Gemm(Dtype dtype, const GemmShape& s, double alpha, const void* x, const void* y, double beta, void* out,
          cudaStream_t stream) {
  const cudaDataType_t type = CudaType(dtype);
  const bool wide = dtype == Dtype::kFloat64;
  const cublasComputeType_t compute = wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  const float alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
  const void* a = wide ? static_cast<const void*>(&alpha) : &alpha32;
  const void* b = wide ? static_cast<const void*>(&beta) : &beta32;
  const cublasOperation_t op_y = s.transpose_y ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_x = s.transpose_x ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int64_t ld_y = s.transpose_y ? s.k : s.n, ld_x = s.transpose_x ? s.m : s.k;
  BlasState& state = StateOf(stream);
  std::lock_guard<std::mutex> lock(state.mutex);
  if (s.batch == 1) {  // its heuristics know more kernels (split k) than those of the batched call
    CheckBlas(LAZY(Cublas, cublasGemmEx_64)(state.handle, op_y, op_x, s.n, s.m, s.k, a, y, type, ld_y, x, type, ld_x, b,
                                            out, type, s.n, compute, CUBLAS_GEMM_DEFAULT),
              "cublasGemmEx");
    return;
  }
  CheckBlas(LAZY(Cublas, cublasGemmStridedBatchedEx_64)(
                state.handle, op_y, op_x, s.n, s.m, s.k, a, y, type, ld_y, s.stride_y, x, type, ld_x, s.stride_x, b,
                out, type, s.n, s.stride_out, s.batch, compute, CUBLAS_GEMM_DEFAULT),
            "cublasGemmStridedBatchedEx");
}

}  // namespace nvgpu
