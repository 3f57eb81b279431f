// What nvcc's launches call. Kernels are not run; a launch that the GPU would refuse is refused.
#include <map>
#include <mutex>
#include <string>

#include "dry.h"

namespace {

constexpr size_t kSharedBytes = 48 << 10;      // of a block, unless the kernel asked for more
constexpr size_t kMaxSharedBytes = 227 << 10;  // that it may ask for on Hopper; 163 KiB on sm_80
constexpr unsigned kMaxBlockZ = 64;

struct Kernels {
  std::mutex lock;
  std::map<const void*, std::string> names;
  std::map<const void*, size_t> shared_bytes;
};
Kernels& All() {
  static Kernels* all = new Kernels;
  return *all;
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local Configuration pushed;

bool Possible(dim3 grid, dim3 block, size_t shared, size_t allowed) {
  size_t threads = size_t(block.x) * block.y * block.z;
  bool good_x = grid.x >= 1 && grid.x <= 2147483647u;
  bool good_yz = grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535;
  return good_x && good_yz && threads >= 1 && threads <= 1024 && block.z <= kMaxBlockZ && shared <= allowed;
}

std::string Text(dim3 d) { return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z); }

cudaError_t Check(const void* kernel, dim3 grid, dim3 block, size_t shared) {
  std::lock_guard<std::mutex> hold(All().lock);
  auto asked = All().shared_bytes.find(kernel);
  size_t allowed = asked == All().shared_bytes.end() ? kSharedBytes : asked->second;
  if (Possible(grid, block, shared, allowed)) return cudaSuccess;
  std::string why = All().names[kernel] + ": no launch of " + Text(grid) + " blocks of " + Text(block) +
                    " threads with " + std::to_string(shared) + " bytes of shared memory";
  return dry::Fail(cudaErrorInvalidConfiguration, why.c_str());
}

}  // namespace

DRY void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
DRY void __cudaRegisterFatBinaryEnd(void**) {}
DRY void __cudaUnregisterFatBinary(void**) {}
DRY char __cudaInitModule(void**) { return 0; }
DRY void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

DRY void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                                int*) {
  std::lock_guard<std::mutex> hold(All().lock);
  All().names[kernel] = name;
}

DRY unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}

DRY cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}

// The handle of a kernel is the address of its host function.
DRY cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* kernel) {
  *handle = static_cast<cudaKernel_t>(const_cast<void*>(kernel));
  return cudaSuccess;
}

DRY cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t) {
  return Check(kernel, grid, block, shared);
}

DRY cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t) {
  return Check(kernel, grid, block, shared);
}

DRY cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > kMaxSharedBytes) return dry::Fail(cudaErrorInvalidValue);
  std::lock_guard<std::mutex> hold(All().lock);
  All().shared_bytes[kernel] = value;
  return cudaSuccess;
}

DRY cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                       unsigned) {
  *blocks = 1;
  return cudaSuccess;
}
