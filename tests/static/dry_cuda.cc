// libcuda.so.1 for the dry device, as far as the operators' library calls it: it notes launches in the file that
// DRY_LAUNCHES names. The code of a kernel is text here: its number, then the bytes of each value that it takes.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

struct Code {
  int number;
  std::vector<int> sizes;
};
struct Map {
  long long numbers[16];
};

}  // namespace

#define DRIVER extern "C" __attribute__((visibility("default"))) int

DRIVER cuInit(unsigned) { return 0; }
DRIVER cuGetErrorString(int, const char** text) {
  *text = "an error of the dry driver";
  return 0;
}
DRIVER cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}
DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
  const char* architecture = std::getenv("DRY_ARCHITECTURE");
  int sm = architecture == nullptr ? 90 : std::atoi(architecture);
  static const std::map<int, int> known = {{16, 132}, {97, 232448}};
  *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : known.at(attribute);
  return 0;
}
DRIVER cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = reinterpret_cast<void*>(static_cast<long>(device) + 1);
  return 0;
}
DRIVER cuCtxSetCurrent(void*) { return 0; }
DRIVER cuModuleLoadData(void** module, const void* image) {
  auto* code = new Code{};
  char* text = const_cast<char*>(static_cast<const char*>(image));
  code->number = static_cast<int>(std::strtol(text, &text, 10));
  for (int size; (size = static_cast<int>(std::strtol(text, &text, 10))) > 0;) code->sizes.push_back(size);
  *module = code;
  return 0;
}
DRIVER cuModuleGetFunction(void** function, void* module, const char*) {
  *function = module;
  return 0;
}
DRIVER cuFuncGetAttribute(int* value, int, void*) {
  *value = 0;
  return 0;
}
DRIVER cuFuncSetAttribute(void*, int, int) { return 0; }
DRIVER cuFuncSetCacheConfig(void*, int) { return 0; }
DRIVER cuMemAlloc_v2(unsigned long long* address, std::size_t size) {
  *address = reinterpret_cast<unsigned long long>(std::malloc(size));
  return 0;
}
DRIVER cuMemsetD32_v2(unsigned long long address, unsigned value, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) reinterpret_cast<unsigned*>(address)[i] = value;
  return 0;
}
DRIVER cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, std::size_t size, void*) {
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size);
  return 0;
}
DRIVER cuMemcpyHtoD_v2(unsigned long long to, const void* from, std::size_t size) {
  std::memmove(reinterpret_cast<void*>(to), from, size);
  return 0;
}

// A map holds what it was made of: base, dtype, swizzle, then shape, strides and box, the fastest axis first.
DRIVER cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* base, const unsigned long long* shape,
                              const unsigned long long* strides, const unsigned* box, const unsigned*, int interleave,
                              int swizzle, int promotion, int fill) {
  if (rank > 4 || interleave != 0 || promotion != 2 || fill != 0) return 1;
  Map made{};
  made.numbers[0] = reinterpret_cast<long long>(base);
  made.numbers[1] = type * 16 + swizzle;
  for (unsigned i = 0; i < rank; ++i) {
    made.numbers[2 + i] = shape[i];
    made.numbers[10 + i] = box[i];
    if (i + 1 < rank) made.numbers[6 + i] = strides[i];
  }
  std::memcpy(map, &made, sizeof(made));
  return 0;
}

DRIVER cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                      unsigned shared, void* stream, void** values, void**) {
  auto* code = static_cast<Code*>(function);
  std::FILE* file = std::fopen(std::getenv("DRY_LAUNCHES"), "a");
  std::fprintf(file, "%d %u %u %u %u %u %lld", code->number, x, y, z, threads, shared,
               reinterpret_cast<long long>(stream));
  for (std::size_t i = 0; i < code->sizes.size(); ++i) {
    std::fputc(' ', file);
    auto* bytes = static_cast<const unsigned char*>(values[i]);
    for (int j = 0; j < code->sizes[i]; ++j) std::fprintf(file, "%02x", bytes[j]);
  }
  std::fputc('\n', file);
  std::fclose(file);
  return 0;
}

// What the rest of this project asks the driver.
DRIVER cuCtxSynchronize() { return 0; }
DRIVER cuCtxGetCurrent(void** context) {
  *context = reinterpret_cast<void*>(1L);
  return 0;
}
DRIVER cuMemHostRegister_v2(void*, std::size_t, unsigned) { return 0; }
DRIVER cuMemHostUnregister(void*) { return 0; }
