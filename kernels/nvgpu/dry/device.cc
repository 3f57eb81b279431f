// Devices and errors.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "dry.h"

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current = 0;

size_t Variable(const char* name, size_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : std::strtoull(value, nullptr, 10);
}

int Count() { return static_cast<int>(Variable("NVGPU_DRY_DEVICES", 1)); }

}  // namespace

namespace dry {

cudaError_t Fail(cudaError_t status, const char* why) {
  if (why != nullptr) std::fprintf(stderr, "nvgpu (dry): %s\n", why);
  return last_error = status;
}

size_t MemoryBytes() { return Variable("NVGPU_DRY_MEMORY", size_t(64) << 30); }

}  // namespace dry

DRY cudaError_t cudaGetLastError() {
  cudaError_t status = last_error;
  last_error = cudaSuccess;
  return status;
}

DRY cudaError_t cudaPeekAtLastError() { return last_error; }

DRY const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "an error of the dry device";
  }
}

DRY cudaError_t cudaGetDeviceCount(int* count) {
  *count = Count();
  return *count > 0 ? cudaSuccess : dry::Fail(cudaErrorNoDevice);
}

DRY cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= Count()) return dry::Fail(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

DRY cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}

// An H200's figures.
DRY cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: *value = 65535; break;
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

DRY cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= Count()) return dry::Fail(cudaErrorInvalidDevice);
  std::memset(properties, 0, sizeof(*properties));
  std::strcpy(properties->name, "dry device");
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->totalGlobalMem = dry::MemoryBytes();
  return cudaSuccess;
}

DRY cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}

DRY cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;  // none
  return cudaSuccess;
}

DRY cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
