#include "cuda.h"

#include <dlfcn.h>

#include <string>

#include "failure.h"

namespace sd3par {
namespace {

template <typename Pointer>
void Find(void* library, const char* name, Pointer* function) {
  *function = reinterpret_cast<Pointer>(dlsym(library, name));
  if (*function == nullptr) Fail(std::string("NVIDIA's driver is too old: it has no ") + name);
}

Driver Open() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) Fail("no NVIDIA driver: libcuda.so.1 is not found");
  Driver driver{};
  Find(library, "cuInit", &driver.cuInit);
  Find(library, "cuGetErrorString", &driver.cuGetErrorString);
  Find(library, "cuDeviceGet", &driver.cuDeviceGet);
  Find(library, "cuDeviceGetAttribute", &driver.cuDeviceGetAttribute);
  Find(library, "cuDevicePrimaryCtxRetain", &driver.cuDevicePrimaryCtxRetain);
  Find(library, "cuCtxSetCurrent", &driver.cuCtxSetCurrent);
  Find(library, "cuModuleLoadData", &driver.cuModuleLoadData);
  Find(library, "cuModuleGetFunction", &driver.cuModuleGetFunction);
  Find(library, "cuFuncGetAttribute", &driver.cuFuncGetAttribute);
  Find(library, "cuFuncSetAttribute", &driver.cuFuncSetAttribute);
  Find(library, "cuFuncSetCacheConfig", &driver.cuFuncSetCacheConfig);
  Find(library, "cuMemAlloc_v2", &driver.cuMemAlloc);
  Find(library, "cuMemsetD32_v2", &driver.cuMemsetD32);
  Find(library, "cuMemcpyDtoDAsync_v2", &driver.cuMemcpyDtoDAsync);
  Find(library, "cuMemcpyHtoD_v2", &driver.cuMemcpyHtoD);
  Find(library, "cuLaunchKernel", &driver.cuLaunchKernel);
  Find(library, "cuTensorMapEncodeTiled", &driver.cuTensorMapEncodeTiled);
  if (driver.cuInit(0) != 0) Fail("NVIDIA's driver does not start: cuInit failed");
  return driver;
}

}  // namespace

const Driver& Cuda() {
  static const Driver driver = Open();
  return driver;
}

void Must(Result result, const char* what) {
  if (result == 0) return;
  const char* text = nullptr;
  Cuda().cuGetErrorString(result, &text);
  Fail(std::string(what) + ": " + (text == nullptr ? "error " + std::to_string(result) : text));
}

}  // namespace sd3par
