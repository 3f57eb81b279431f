#include <algorithm>
#include <stdexcept>

#include "../runtime/lazy.h"
#include "blaslt_choose.h"

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

// Column-major, pitch 0 for no gaps.
cublasLtMatrixLayout_t Layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t pitch) {
  cublasLtMatrixLayout_t layout = nullptr;
  CheckBlas(LAZY(CublasLt, cublasLtMatrixLayoutCreate)(&layout, type, rows, columns, pitch == 0 ? rows : pitch),
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
  plan->a = s.transpose_y ? Layout(type, s.k, s.n, s.pitch_y) : Layout(type, s.n, s.k, s.pitch_y);
  plan->b = s.transpose_x ? Layout(type, s.m, s.k, s.pitch_x) : Layout(type, s.k, s.m, s.pitch_x);
  plan->out = Layout(type, s.n, s.m, s.pitch_out);
}

// Described, its algorithm not chosen yet, if `fresh`.
LtPlan& PlanOf(BlasState& state, Dtype dtype, const GemmShape& s, Epilogue epilogue, const LtKey& key, bool* fresh) {
  if (state.plans.size() >= kMaxPlans && !state.plans.count(key)) state.plans.clear();
  auto& plan = state.plans[key];
  *fresh = !plan;
  if (!plan) {
    auto described = std::make_unique<LtPlan>();
    Describe(described.get(), CudaType(dtype), s, epilogue);
    plan = std::move(described);
  }
  return *plan;
}

LtKey KeyOf(Dtype dtype, const GemmShape& s, Epilogue epilogue, const void* x, const void* y, const void* bias,
            const void* out) {
  int kind = static_cast<int>(dtype) * kKindsOfDtype + static_cast<int>(epilogue) * 4 + s.transpose_x * 2 + s.transpose_y;
  // The bias is read with vectors as wide as those that the result is written with.
  return {kind, s.m, s.n, s.k, Alignment(y), Alignment(x), std::min(Alignment(out), Alignment(bias)),
          s.pitch_y, s.pitch_x, s.pitch_out};
}

// Bytes that the plan's algorithm needs, 0 where cuBLASLt does not say.
size_t WorkspaceOf(const LtCall& call) {
  cublasLtMatmulHeuristicResult_t result = {};
  const LtPlan& plan = call.plan;
  const cublasStatus_t status = LAZY(CublasLt, cublasLtMatmulAlgoCheck)(
      call.state.lt, plan.operation, plan.a, plan.b, plan.out, plan.out, &plan.algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS ? result.workspaceSize : 0;
}

// On a piece of its own where a graph is captured (pieces.h), else on the workspace of all.
cublasStatus_t RunPlan(const LtCall& call) {
  const LtPlan& plan = call.plan;
  void* const piece = plan.workspace > 0 ? call.state.pieces->Take(call.stream, plan.workspace) : nullptr;
  return piece == nullptr ? call.Run(plan.algorithm) : call.Run(plan.algorithm, piece, plan.workspace);
}

}  // namespace

LtPlan::~LtPlan() {
  if (operation) LAZY(CublasLt, cublasLtMatmulDescDestroy)(operation);
  for (cublasLtMatrixLayout_t layout : {a, b, out}) {
    if (layout) LAZY(CublasLt, cublasLtMatrixLayoutDestroy)(layout);
  }
}

cublasStatus_t LtCall::Run(const cublasLtMatmulAlgo_t& algorithm, void* workspace, size_t bytes) const {
  const float one = 1, zero = 0;
  return LAZY(CublasLt, cublasLtMatmul)(state.lt, plan.operation, &one, y, plan.a, x, plan.b, &zero, out, plan.out, out,
                                        plan.out, &algorithm, workspace, bytes, stream);
}

bool GemmBias(Dtype dtype, const GemmShape& s, Epilogue epilogue, const void* x, const void* y, const void* bias,
              void* out, const Scratch& scratch, cudaStream_t stream) {
  if (dtype == Dtype::kFloat64) return false;
  const LtKey key = KeyOf(dtype, s, epilogue, x, y, bias, out);
  BlasState& state = StateOf(stream);
  std::lock_guard<std::mutex> lock(state.mutex);
  bool fresh = false;
  LtPlan& plan = PlanOf(state, dtype, s, epilogue, key, &fresh);
  if (!fresh && !plan.found) return false;
  Set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  const LtCall call{state, plan, x, y, bias, out, stream};
  if (fresh) {
    plan.found = ChooseAlgorithm(call, key, scratch, &plan.algorithm);
    if (plan.found) plan.workspace = WorkspaceOf(call);
  }
  if (!plan.found) return false;
  CheckBlas(RunPlan(call), "cublasLtMatmul");
  return true;
}

}  // namespace nvgpu
