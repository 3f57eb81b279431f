// CUDA's driver, opened when it is first needed: the library loads on machines that have none. Names, numbers and
// layouts are those of NVIDIA's cuda.h, which is not needed to build this.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sd3par {

using Result = int;  // CUresult: 0 is success
using Device = int;
using Context = void*;
using Module = void*;
using Function = void*;
using Stream = void*;
using Address = unsigned long long;

// What TMA reads a tensor by.
struct alignas(64) TensorMap {
  std::uint64_t opaque[16];
};

enum class DeviceAttribute : int {
  kProcessors = 16,
  kMajor = 75,
  kMinor = 76,
  kSharedMemoryOptIn = 97,
};
enum class FunctionAttribute : int { kSharedSize = 1, kMaxDynamicSharedSize = 8 };

struct Driver {
  Result (*cuInit)(unsigned);
  Result (*cuGetErrorString)(Result, const char**);
  Result (*cuDeviceGet)(Device*, int);
  Result (*cuDeviceGetAttribute)(int*, DeviceAttribute, Device);
  Result (*cuDevicePrimaryCtxRetain)(Context*, Device);
  Result (*cuCtxSetCurrent)(Context);
  Result (*cuModuleLoadData)(Module*, const void*);
  Result (*cuModuleGetFunction)(Function*, Module, const char*);
  Result (*cuFuncGetAttribute)(int*, FunctionAttribute, Function);
  Result (*cuFuncSetAttribute)(Function, FunctionAttribute, int);
  Result (*cuFuncSetCacheConfig)(Function, int);
  Result (*cuMemAlloc)(Address*, std::size_t);
  Result (*cuMemsetD32)(Address, unsigned, std::size_t);
  Result (*cuMemcpyDtoDAsync)(Address, Address, std::size_t, Stream);
  Result (*cuMemcpyHtoD)(Address, const void*, std::size_t);
  Result (*cuLaunchKernel)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream,
                           void**, void**);
  Result (*cuTensorMapEncodeTiled)(TensorMap*, int type, std::uint32_t rank, void* base, const std::uint64_t* shape,
                                   const std::uint64_t* strides, const std::uint32_t* box,
                                   const std::uint32_t* element_strides, int interleave, int swizzle, int promotion,
                                   int fill);
};

// Throws where there is no driver.
const Driver& Cuda();

// Throws unless a call of the driver succeeded.
void Must(Result result, const char* what);

}  // namespace sd3par
