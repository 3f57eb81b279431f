// cuBLAS and cuBLASLt handles for Paddle's contexts, which ask for them when a kernel does. (The plug-in's own matrix
// products have theirs in ops/blas.cc.)
#include <cublasLt.h>
#include <cublas_v2.h>

#include <map>
#include <mutex>
#include <utility>

#include "lazy.h"
#include "runtime.h"

namespace nvgpu {
namespace {

void MustBlas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string(call) + ": " + LAZY(Cublas, cublasGetStatusString)(status));
}

cublasHandle_t Cuda(C_BLASHandle handle) { return reinterpret_cast<cublasHandle_t>(handle); }
cublasLtHandle_t Cuda(C_BLASLtHandle handle) { return reinterpret_cast<cublasLtHandle_t>(handle); }

// What cuBLAS asks for on Hopper; with less it leaves out some of its faster algorithms.
constexpr size_t kWorkspaceBytes = size_t(32) << 20;

// One workspace a stream, whose work runs in order, for every handle on it. Never freed: a stream lives as long as its
// context, and contexts live as long as the process.
struct Workspaces {
  std::mutex lock;
  std::map<std::pair<int, cudaStream_t>, void*> of;
};
Workspaces& Known() {
  static Workspaces* known = new Workspaces;
  return *known;
}

void* WorkspaceOf(int device, cudaStream_t stream) {
  std::lock_guard<std::mutex> hold(Known().lock);
  void*& workspace = Known().of[{device, stream}];
  if (workspace == nullptr) Must(cudaMalloc(&workspace, kWorkspaceBytes), "cudaMalloc of cuBLAS's workspace");
  return workspace;
}

// cuBLAS's own workspace is allocated when cuBLAS likes: illegal inside a capture.
C_Status InitBlasHandle(const C_Device device, C_BLASHandle* handle, C_Stream stream) {
  return Guarded("init_blas_handle", [&] {
    UseDevice(device->id);
    RelaxedCapture relaxed;
    cublasHandle_t made = nullptr;
    MustBlas(LAZY(Cublas, cublasCreate_v2)(&made), "cublasCreate");
    *handle = reinterpret_cast<C_BLASHandle>(made);
    auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    MustBlas(LAZY(Cublas, cublasSetStream_v2)(made, cuda_stream), "cublasSetStream");
    // After the stream: setting one puts cuBLAS's own workspace back.
    MustBlas(LAZY(Cublas, cublasSetWorkspace_v2)(made, WorkspaceOf(device->id, cuda_stream), kWorkspaceBytes),
             "cublasSetWorkspace");
  });
}

// Only the number that is TF32 in cuBLAS rounds fp32; "tensor cores", 1, have become cuBLAS's default.
C_Status SetMathMode(const C_Device, C_BLASHandle handle, int mode) {
  return Guarded("blas_set_math_mode", [&] {
    bool tf32 = mode == CUBLAS_TF32_TENSOR_OP_MATH;
    cublasMath_t math = tf32 ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH;
    MustBlas(LAZY(Cublas, cublasSetMathMode)(Cuda(handle), math), "cublasSetMathMode");
  });
}

C_Status InitBlasLtHandle(const C_Device device, C_BLASLtHandle* handle) {
  return Guarded("init_blaslt_handle", [&] {
    UseDevice(device->id);
    RelaxedCapture relaxed;
    cublasLtHandle_t made = nullptr;
    MustBlas(LAZY(CublasLt, cublasLtCreate)(&made), "cublasLtCreate");
    *handle = reinterpret_cast<C_BLASLtHandle>(made);
  });
}

C_Status DestroyBlasHandle(const C_Device, C_BLASHandle handle) {
  return Guarded("destroy_blas_handle",
                 [&] { MustBlas(LAZY(Cublas, cublasDestroy_v2)(Cuda(handle)), "cublasDestroy"); });
}

C_Status DestroyBlasLtHandle(const C_Device, C_BLASLtHandle handle) {
  return Guarded("destroy_blaslt_handle",
                 [&] { MustBlas(LAZY(CublasLt, cublasLtDestroy)(Cuda(handle)), "cublasLtDestroy"); });
}

}  // namespace

void FillBlas(C_DeviceInterface* interface) {
  interface->init_blas_handle = InitBlasHandle;
  interface->blas_set_math_mode = SetMathMode;
  interface->init_blaslt_handle = InitBlasLtHandle;
  interface->destroy_blas_handle = DestroyBlasHandle;
  interface->destroy_blaslt_handle = DestroyBlasLtHandle;
}

}  // namespace nvgpu
