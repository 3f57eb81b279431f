// Plain C functions for Python (kernels/nvgpu/info.py calls them through ctypes): what Paddle's interface has no word
// for. They return 0 on success.
#include <cublasLt.h>
#include <cudnn.h>
#include <nccl.h>

#include <cstring>

#include "lazy.h"
#include "runtime.h"

namespace {

int Code(C_Status status) { return status == C_SUCCESS ? 0 : 1; }

void CopyText(const std::string& text, char* to, size_t size) {
  if (size > 0) std::snprintf(to, size, "%s", text.c_str());
}

nvgpu::Library& LibraryOf(const std::string& name) {
  if (name == "cublas") return nvgpu::Cublas();
  if (name == "cublasLt") return nvgpu::CublasLt();
  if (name == "cudnn") return nvgpu::Cudnn();
  if (name == "nccl") return nvgpu::Nccl();
  throw std::runtime_error("no library " + name + "; there are cublas, cublasLt, cudnn and nccl");
}

long VersionOf(const std::string& name) {
  if (name == "cublas" || name == "cublasLt") return static_cast<long>(LAZY(CublasLt, cublasLtGetVersion)());
  if (name == "cudnn") return static_cast<long>(LAZY(Cudnn, cudnnGetVersion)());
  int version = 0;
  LAZY(Nccl, ncclGetVersion)(&version);
  return version;
}

}  // namespace

extern "C" {

// Of the CUDA runtime in this library, and of the driver (0: none): 13000 is 13.0.
int nvgpu_versions(int* runtime, int* driver) {
  *runtime = *driver = 0;
  return Code(nvgpu::Guarded("versions", [&] {
    nvgpu::Must(cudaRuntimeGetVersion(runtime), "cudaRuntimeGetVersion");
    if (cudaDriverGetVersion(driver) != cudaSuccess) cudaGetLastError();
  }));
}

// Whether `device` can read and write the memory of `peer`.
int nvgpu_p2p(int device, int peer, int* can) {
  return Code(nvgpu::Guarded("p2p", [&] {
    nvgpu::Must(cudaDeviceCanAccessPeer(can, device, peer), "cudaDeviceCanAccessPeer");
  }));
}

// change: 1 where static programs are run inside a capture from now on, -1 where no more.
int nvgpu_skip_waits(int change) {
  nvgpu::SkipWaits(change);
  return 0;
}

// version: as the library counts. why: empty, or what keeps the library from being opened.
int nvgpu_library(const char* library, long* version, char* why, size_t size) {
  *version = 0;
  CopyText("", why, size);
  return Code(nvgpu::Guarded("library", [&] {
    std::string reason;
    bool open = LibraryOf(library).Open(&reason);
    CopyText(reason, why, size);
    if (open) *version = VersionOf(library);
  }));
}

}  // extern "C"
