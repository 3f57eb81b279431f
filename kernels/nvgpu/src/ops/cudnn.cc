#include "cudnn.h"

#include <cudnn.h>

#include <array>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../runtime/lazy.h"
#include "../runtime/runtime.h"

namespace nvgpu {
namespace {

constexpr size_t kMaxPlans = 1024;  // a VAE at a few sizes has a few dozen
constexpr size_t kMaxWorkspace = size_t(4) << 30;

void CheckDnn(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string("nvgpu: ") + what + ": " + LAZY(Cudnn, cudnnGetErrorString)(status));
}

// Never destroyed: at process exit the driver may be gone before us.
struct DnnState {
  DnnState() {
    RelaxedCapture relaxed;
    CheckDnn(LAZY(Cudnn, cudnnCreate)(&handle), "cudnnCreate");
  }
  std::mutex mutex;  // held while a call is made with the handle
  cudnnHandle_t handle = nullptr;
  std::map<std::array<int, 18>, std::shared_ptr<Convolution>> plans;
};

DnnState& StateOfDevice() {
  static auto& guard = *new std::mutex;
  static auto& states = *new std::map<int, std::unique_ptr<DnnState>>;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) throw std::runtime_error("nvgpu: convolution without a current GPU");
  std::lock_guard<std::mutex> lock(guard);
  auto& state = states[device];
  if (!state) state = std::make_unique<DnnState>();
  return *state;
}

cudnnDataType_t DnnType(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return CUDNN_DATA_FLOAT;
    case Dtype::kFloat16: return CUDNN_DATA_HALF;
    case Dtype::kBFloat16: return CUDNN_DATA_BFLOAT16;
    case Dtype::kFloat64: return CUDNN_DATA_DOUBLE;
    default: throw std::runtime_error("nvgpu: convolution: dtype not supported");
  }
}

class DnnConvolution : public Convolution {
 public:
  DnnConvolution(DnnState& state, Dtype dtype, const ConvShape& shape)
      : state_(state), wide_(dtype == Dtype::kFloat64) {
    DescribeTensors(DnnType(dtype), shape);
    DescribeConvolution(dtype, shape);
    Choose(dtype, shape);
  }
  ~DnnConvolution() override {
    if (x_) LAZY(Cudnn, cudnnDestroyTensorDescriptor)(x_);
    if (out_) LAZY(Cudnn, cudnnDestroyTensorDescriptor)(out_);
    if (filter_) LAZY(Cudnn, cudnnDestroyFilterDescriptor)(filter_);
    if (convolution_) LAZY(Cudnn, cudnnDestroyConvolutionDescriptor)(convolution_);
  }
  size_t Workspace() const override { return workspace_; }
  void Run(const void* x, const void* filter, void* workspace, void* out, cudaStream_t stream) override;

 private:
  void DescribeTensors(cudnnDataType_t type, const ConvShape& s);
  void DescribeConvolution(Dtype dtype, const ConvShape& s);
  void Choose(Dtype dtype, const ConvShape& s);
  bool Accept(const cudnnConvolutionFwdAlgoPerf_t& candidate, bool tensor_cores);

  DnnState& state_;
  bool wide_;
  cudnnTensorDescriptor_t x_ = nullptr, out_ = nullptr;
  cudnnFilterDescriptor_t filter_ = nullptr;
  cudnnConvolutionDescriptor_t convolution_ = nullptr;
  cudnnConvolutionFwdAlgo_t algorithm_ = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM;
  size_t workspace_ = 0;
};

void DnnConvolution::DescribeTensors(cudnnDataType_t type, const ConvShape& s) {
  const cudnnTensorFormat_t format = s.channels_last ? CUDNN_TENSOR_NHWC : CUDNN_TENSOR_NCHW;
  CheckDnn(LAZY(Cudnn, cudnnCreateTensorDescriptor)(&x_), "cudnnCreateTensorDescriptor");
  CheckDnn(LAZY(Cudnn, cudnnCreateTensorDescriptor)(&out_), "cudnnCreateTensorDescriptor");
  CheckDnn(LAZY(Cudnn, cudnnCreateFilterDescriptor)(&filter_), "cudnnCreateFilterDescriptor");
  auto set = LAZY(Cudnn, cudnnSetTensor4dDescriptor);  // dims as N, C, H, W in every format
  CheckDnn(set(x_, format, type, s.batch, s.channels, s.height, s.width), "convolution input");
  CheckDnn(set(out_, format, type, s.batch, s.filters, s.out_height, s.out_width), "convolution output");
  CheckDnn(LAZY(Cudnn, cudnnSetFilter4dDescriptor)(filter_, type, format, s.filters, s.channels / s.groups,
                                                   s.filter_height, s.filter_width),
           "convolution filter");
}

void DnnConvolution::DescribeConvolution(Dtype dtype, const ConvShape& s) {
  CheckDnn(LAZY(Cudnn, cudnnCreateConvolutionDescriptor)(&convolution_), "cudnnCreateConvolutionDescriptor");
  CheckDnn(LAZY(Cudnn, cudnnSetConvolution2dDescriptor)(
               convolution_, s.pad_height, s.pad_width, s.stride_height, s.stride_width, s.dilation_height,
               s.dilation_width, CUDNN_CROSS_CORRELATION, wide_ ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT),
           "cudnnSetConvolution2dDescriptor");
  CheckDnn(LAZY(Cudnn, cudnnSetConvolutionGroupCount)(convolution_, s.groups), "cudnnSetConvolutionGroupCount");
  const cudnnMathType_t math = dtype == Dtype::kFloat32   ? CUDNN_FMA_MATH
                               : dtype == Dtype::kFloat64 ? CUDNN_DEFAULT_MATH
                                                          : CUDNN_TENSOR_OP_MATH;
  CheckDnn(LAZY(Cudnn, cudnnSetConvolutionMathType)(convolution_, math), "cudnnSetConvolutionMathType");
}

// Takes the candidate if it sums products (Winograd and Fourier transforms cost digits) and its memory is bearable.
bool DnnConvolution::Accept(const cudnnConvolutionFwdAlgoPerf_t& candidate, bool tensor_cores) {
  if (candidate.status != CUDNN_STATUS_SUCCESS || candidate.algo > CUDNN_CONVOLUTION_FWD_ALGO_GEMM) return false;
  if (tensor_cores) {  // whether it uses them is a part of the choice; fp32 stays with FMA
    CheckDnn(LAZY(Cudnn, cudnnSetConvolutionMathType)(convolution_, candidate.mathType), "cudnnSetConvolutionMathType");
  }
  size_t bytes = 0;
  cudnnStatus_t status = LAZY(Cudnn, cudnnGetConvolutionForwardWorkspaceSize)(state_.handle, x_, filter_, convolution_,
                                                                              out_, candidate.algo, &bytes);
  if (status != CUDNN_STATUS_SUCCESS || bytes > kMaxWorkspace) return false;
  algorithm_ = candidate.algo;
  workspace_ = bytes;
  return true;
}

void DnnConvolution::Choose(Dtype dtype, const ConvShape& s) {
  const bool tensor_cores = dtype == Dtype::kFloat16 || dtype == Dtype::kBFloat16;
  cudnnConvolutionFwdAlgoPerf_t candidates[CUDNN_CONVOLUTION_FWD_ALGO_COUNT] = {};
  int count = 0;
  CheckDnn(LAZY(Cudnn, cudnnGetConvolutionForwardAlgorithm_v7)(state_.handle, x_, filter_, convolution_, out_,
                                                               CUDNN_CONVOLUTION_FWD_ALGO_COUNT, &count, candidates),
           "cudnnGetConvolutionForwardAlgorithm_v7");
  for (int i = 0; i < count; ++i) {
    if (Accept(candidates[i], tensor_cores)) return;
  }
  throw std::runtime_error("nvgpu: cuDNN has no convolution of " + std::to_string(s.channels) + " to " +
                           std::to_string(s.filters) + " channels at " + std::to_string(s.height) + " x " +
                           std::to_string(s.width));
}

void DnnConvolution::Run(const void* x, const void* filter, void* workspace, void* out, cudaStream_t stream) {
  const float one = 1, zero = 0;
  const double wide_one = 1, wide_zero = 0;
  std::lock_guard<std::mutex> lock(state_.mutex);
  CheckDnn(LAZY(Cudnn, cudnnSetStream)(state_.handle, stream), "cudnnSetStream");
  CheckDnn(LAZY(Cudnn, cudnnConvolutionForward)(
               state_.handle, wide_ ? static_cast<const void*>(&wide_one) : &one, x_, x, filter_, filter, convolution_,
               algorithm_, workspace, workspace_, wide_ ? static_cast<const void*>(&wide_zero) : &zero, out_, out),
           "cudnnConvolutionForward");
}

std::array<int, 18> KeyOf(Dtype dtype, const ConvShape& s) {
  return {static_cast<int>(dtype), s.batch, s.channels, s.height, s.width, s.filters, s.filter_height, s.filter_width,
          s.out_height, s.out_width, s.pad_height, s.pad_width, s.stride_height, s.stride_width, s.dilation_height,
          s.dilation_width, s.groups, s.channels_last};
}

}  // namespace

std::shared_ptr<Convolution> ConvolutionOf(Dtype dtype, const ConvShape& shape) {
  DnnState& state = StateOfDevice();
  std::lock_guard<std::mutex> lock(state.mutex);
  const auto key = KeyOf(dtype, shape);
  auto found = state.plans.find(key);
  if (found != state.plans.end()) return found->second;
  if (state.plans.size() >= kMaxPlans) state.plans.clear();
  auto fresh = std::make_shared<DnnConvolution>(state, dtype, shape);
  state.plans[key] = fresh;
  return fresh;
}

}  // namespace nvgpu
