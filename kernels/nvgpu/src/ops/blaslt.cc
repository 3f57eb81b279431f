#include <algorithm>
#include <stdexcept>

#include "../runtime/lazy.h"
#include "blas_state.h"

namespace nvgpu {
namespace {

constexpr size_t kMaxPlans = 1024;  // a model at a few sizes has a few dozen

// The largest power of two up to 256 that the address is a multiple of.
uint32_t Alignment(const void* address) {
  auto value = reinterpret_cast<uintptr_t>(address) | 256;
  return static_cast<uint32_t>(value & (~value + 1));
}

cublasLtEpilogue_t LtEpilogue(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::kBiasRelu: return CUBLASLT_EPILOGUE_RELU_BIAS;
    case Epilogue::kBiasGelu: return CUBLASLT_EPILOGUE_GELU_BIAS;
    default: return CUBLASLT_EPILOGUE_BIAS;
  }
}

template <typename V>
void Set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, V value) {
  CheckBlas(LAZY(CublasLt, cublasLtMatmulDescSetAttribute)(operation, attribute, &value, sizeof(value)),
            "cublasLtMatmulDescSetAttribute");
}

template <typename V>
void Set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, V value) {
  CheckBlas(LAZY(CublasLt, cublasLtMatmulPreferenceSetAttribute)(preference, attribute, &value, sizeof(value)),
            "cublasLtMatmulPreferenceSetAttribute");
}

cublasLtMatrixLayout_t Layout(cudaDataType_t type, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  CheckBlas(LAZY(CublasLt, cublasLtMatrixLayoutCreate)(&layout, type, rows, columns, rows),
            "cublasLtMatrixLayoutCreate");
  return layout;
}

// Column-major as in Gemm: a is y, b is x.
void Describe(LtPlan* plan, cudaDataType_t type, const GemmShape& s, Epilogue epilogue) {
  CheckBlas(LAZY(CublasLt, cublasLtMatmulDescCreate)(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
            "cublasLtMatmulDescCreate");
  Set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_y ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_x ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, LtEpilogue(epilogue));
  Set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
  plan->a = s.transpose_y ? Layout(type, s.k, s.n) : Layout(type, s.n, s.k);
  plan->b = s.transpose_x ? Layout(type, s.m, s.k) : Layout(type, s.k, s.m);
  plan->out = Layout(type, s.n, s.m);
}

// Partial sums of a split k are added in fp32 (COMPUTE_TYPE), never in the output's fp16 or bf16.
void Prefer(cublasLtMatmulPreference_t preference, const LtKey& key) {
  Set<uint64_t>(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kBlasWorkspace);
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::get<4>(key));
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::get<5>(key));
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::get<6>(key));
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::get<6>(key));
}

// Asks cuBLASLt's heuristics, which run nothing on the GPU.
void Choose(BlasState& state, LtPlan* plan, const LtKey& key) {
  cublasLtMatmulPreference_t preference = nullptr;
  CheckBlas(LAZY(CublasLt, cublasLtMatmulPreferenceCreate)(&preference), "cublasLtMatmulPreferenceCreate");
  std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, cublasStatus_t (*)(cublasLtMatmulPreference_t)> owner(
      preference, LAZY(CublasLt, cublasLtMatmulPreferenceDestroy));
  Prefer(preference, key);
  cublasLtMatmulHeuristicResult_t result = {};
  int count = 0;
  cublasStatus_t status = LAZY(CublasLt, cublasLtMatmulAlgoGetHeuristic)(
      state.lt, plan->operation, plan->a, plan->b, plan->out, plan->out, preference, 1, &result, &count);
  plan->found = status == CUBLAS_STATUS_SUCCESS && count == 1 && result.state == CUBLAS_STATUS_SUCCESS;
  plan->algorithm = result.algo;
}

LtPlan& PlanOf(BlasState& state, Dtype dtype, const GemmShape& s, Epilogue epilogue, const LtKey& key) {
  if (state.plans.size() >= kMaxPlans && !state.plans.count(key)) state.plans.clear();
  auto& plan = state.plans[key];
  if (!plan) {
    auto fresh = std::make_unique<LtPlan>();
    Describe(fresh.get(), CudaType(dtype), s, epilogue);
    Choose(state, fresh.get(), key);
    plan = std::move(fresh);
  }
  return *plan;
}

LtKey KeyOf(Dtype dtype, const GemmShape& s, Epilogue epilogue, const void* x, const void* y, const void* bias,
            const void* out) {
  int kind = static_cast<int>(dtype) * 16 + static_cast<int>(epilogue) * 4 + s.transpose_x * 2 + s.transpose_y;
  // The bias is read with vectors as wide as those that the result is written with.
  return {kind, s.m, s.n, s.k, Alignment(y), Alignment(x), std::min(Alignment(out), Alignment(bias))};
}

}  // namespace

LtPlan::~LtPlan() {
  if (operation) LAZY(CublasLt, cublasLtMatmulDescDestroy)(operation);
  for (cublasLtMatrixLayout_t layout : {a, b, out}) {
    if (layout) LAZY(CublasLt, cublasLtMatrixLayoutDestroy)(layout);
  }
}

bool GemmBias(Dtype dtype, const GemmShape& s, Epilogue epilogue, const void* x, const void* y, const void* bias,
              void* out, cudaStream_t stream) {
  if (dtype == Dtype::kFloat64) return false;
  const LtKey key = KeyOf(dtype, s, epilogue, x, y, bias, out);
  const float one = 1, zero = 0;
  BlasState& state = StateOf(stream);
  std::lock_guard<std::mutex> lock(state.mutex);
  LtPlan& plan = PlanOf(state, dtype, s, epilogue, key);
  if (!plan.found) return false;
  Set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  CheckBlas(LAZY(CublasLt, cublasLtMatmul)(state.lt, plan.operation, &one, y, plan.a, x, plan.b, &zero, out, plan.out,
                                           out, plan.out, &plan.algorithm, state.workspace, kBlasWorkspace, stream),
            "cublasLtMatmul");
  return true;
}

}  // namespace nvgpu
