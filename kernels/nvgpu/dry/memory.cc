// Device memory on the host: zeroed, counted, and copied for real.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "dry.h"

namespace {

struct Block {
  size_t size;
  int device;
  void* whole;  // what calloc gave, which may begin earlier
};

// By address. Never freed: Paddle frees tensors while the process's statics go.
struct Memory {
  std::mutex lock;
  std::map<uintptr_t, Block> blocks;
  std::map<int, size_t> used;
};
Memory& All() {
  static Memory* all = new Memory;
  return *all;
}

// How many bytes of device memory follow `pointer` in its allocation; -1: it is the host's.
int64_t Room(const void* pointer) {
  auto address = reinterpret_cast<uintptr_t>(pointer);
  std::lock_guard<std::mutex> hold(All().lock);
  auto after = All().blocks.upper_bound(address);
  if (after == All().blocks.begin()) return -1;
  auto block = std::prev(after);
  uintptr_t end = block->first + block->second.size;
  return address < end ? static_cast<int64_t>(end - address) : -1;
}

bool Fits(const void* pointer, size_t size) {
  int64_t room = Room(pointer);
  return room < 0 || static_cast<size_t>(room) >= size;
}

cudaError_t Copy(void* to, const void* from, size_t size, cudaStream_t stream) {
  if (!Fits(to, size) || !Fits(from, size))
    return dry::Fail(cudaErrorInvalidValue, "a copy past the end of its memory");
  if (dry::IsCapturing(stream)) {
    bool device_only = dry::IsDeviceMemory(to) && dry::IsDeviceMemory(from);
    return device_only ? cudaSuccess
                       : dry::Fail(cudaErrorStreamCaptureUnsupported, "a copy to or from the host inside a capture");
  }
  std::memmove(to, from, size);
  return cudaSuccess;
}

}  // namespace

namespace dry {

bool IsDeviceMemory(const void* pointer) { return Room(pointer) >= 0; }

size_t FreeBytes(int device) {
  std::lock_guard<std::mutex> hold(All().lock);
  return MemoryBytes() - All().used[device];
}

}  // namespace dry

DRY cudaError_t cudaMalloc(void** pointer, size_t size) {
  if (dry::CaptureForbids()) return dry::Fail(cudaErrorStreamCaptureUnsupported, "cudaMalloc inside a capture");
  int device = 0;
  cudaGetDevice(&device);
  *pointer = nullptr;
  if (size == 0) return cudaSuccess;
  size_t rounded = (size + 255) / 256 * 256;
  if (rounded > dry::FreeBytes(device)) return dry::Fail(cudaErrorMemoryAllocation);
  void* whole = std::calloc(rounded + 255, 1);  // pages that nothing is copied to cost nothing
  if (whole == nullptr) return dry::Fail(cudaErrorMemoryAllocation);
  uintptr_t address = (reinterpret_cast<uintptr_t>(whole) + 255) / 256 * 256;
  *pointer = reinterpret_cast<void*>(address);
  std::lock_guard<std::mutex> hold(All().lock);
  All().blocks[address] = {size, device, whole};
  All().used[device] += rounded;
  return cudaSuccess;
}

DRY cudaError_t cudaFree(void* pointer) {
  if (dry::CaptureForbids()) return dry::Fail(cudaErrorStreamCaptureUnsupported, "cudaFree inside a capture");
  if (pointer == nullptr) return cudaSuccess;
  std::lock_guard<std::mutex> hold(All().lock);
  auto block = All().blocks.find(reinterpret_cast<uintptr_t>(pointer));
  if (block == All().blocks.end()) return dry::Fail(cudaErrorInvalidValue, "cudaFree of what is no allocation");
  All().used[block->second.device] -= (block->second.size + 255) / 256 * 256;
  std::free(block->second.whole);
  All().blocks.erase(block);
  return cudaSuccess;
}

DRY cudaError_t cudaMallocHost(void** pointer, size_t size) {
  *pointer = std::calloc(size, 1);
  return *pointer != nullptr ? cudaSuccess : dry::Fail(cudaErrorMemoryAllocation);
}

DRY cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

DRY cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  int device = 0;
  cudaGetDevice(&device);
  *free = dry::FreeBytes(device);
  *total = dry::MemoryBytes();
  return cudaSuccess;
}

DRY cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  return Copy(to, from, size, stream);
}

DRY cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t stream) {
  return Copy(to, from, size, stream);
}

DRY cudaError_t cudaMemsetAsync(void* pointer, int value, size_t size, cudaStream_t) {
  if (!Fits(pointer, size)) return dry::Fail(cudaErrorInvalidValue, "cudaMemset past the end of its memory");
  std::memset(pointer, value, size);
  return cudaSuccess;
}
