// Memory of devices and pinned memory of the host, and copies between them.
#include <cstdint>

#include "runtime.h"

namespace nvgpu {
namespace {

// Out of memory is "done", with no memory: Paddle's allocator then gives back the chunks that lie idle and asks again,
// and raises ResourceExhausted, with sizes, if that did not help. A failure would end the process's work at once.
C_Status Allocate(const C_Device device, void** pointer, size_t size) {
  return Guarded("allocate", [&] {
    UseDevice(device->id);
    RelaxedCapture relaxed;
    *pointer = nullptr;
    cudaError_t status = cudaMalloc(pointer, size);
    if (status != cudaErrorMemoryAllocation) Must(status, "cudaMalloc");
    if (status == cudaErrorMemoryAllocation) cudaGetLastError();
  });
}

C_Status Free(const C_Device device, void* pointer, size_t) {
  return Guarded("free", [&] {
    UseDevice(device->id);
    RelaxedCapture relaxed;
    Must(cudaFree(pointer), "cudaFree");
  });
}

C_Status AllocateHost(const C_Device device, void** pointer, size_t size) {
  return Guarded("allocate on the host", [&] {
    UseDevice(device->id);
    RelaxedCapture relaxed;
    Must(cudaMallocHost(pointer, size), "cudaMallocHost");
  });
}

C_Status FreeHost(const C_Device device, void* pointer, size_t) {
  return Guarded("free on the host", [&] {
    UseDevice(device->id);
    RelaxedCapture relaxed;
    Must(cudaFreeHost(pointer), "cudaFreeHost");
  });
}

// Runs `call(stream)` after all work of Paddle's streams on `device`, and waits for it: what Paddle expects of a copy
// without a stream. Only those streams are waited for, not the whole device (another library's work goes on), and the
// copy itself is on a stream of this thread, so two threads' copies overlap. Pageable memory needs no staging of ours:
// the driver has pinned buffers for it, and up to 64 KiB it returns before the transfer.
template <typename Call>
void Now(int device, const char* what, Call call) {
  UseDevice(device);
  RelaxedCapture relaxed;
  WaitForStreams(device);
  Must(call(cudaStreamPerThread), what);
  Must(cudaStreamSynchronize(cudaStreamPerThread), what);
}

C_Status Copy(const C_Device device, void* to, const void* from, size_t size) {
  if (size == 0) return C_SUCCESS;
  return Guarded("copy", [&] {
    Now(device->id, "cudaMemcpyAsync",
        [&](cudaStream_t stream) { return cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream); });
  });
}

C_Status CopyToPeer(const C_Device to_device, const C_Device from_device, void* to, const void* from, size_t size) {
  if (size == 0) return C_SUCCESS;
  return Guarded("copy between devices", [&] {
    UseDevice(from_device->id);
    RelaxedCapture relaxed;
    WaitForStreams(from_device->id);
    Now(to_device->id, "cudaMemcpyPeerAsync", [&](cudaStream_t stream) {
      return cudaMemcpyPeerAsync(to, to_device->id, from, from_device->id, size, stream);
    });
  });
}

C_Status Set(const C_Device device, void* pointer, unsigned char value, size_t size) {
  if (size == 0) return C_SUCCESS;
  return Guarded("set", [&] {
    Now(device->id, "cudaMemsetAsync",
        [&](cudaStream_t stream) { return cudaMemsetAsync(pointer, value, size, stream); });
  });
}

C_Status CopyOnStream(const C_Device device, C_Stream stream, void* to, const void* from, size_t size) {
  if (size == 0) return C_SUCCESS;
  return Guarded("copy on a stream", [&] {
    UseDevice(device->id);
    Must(cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, reinterpret_cast<cudaStream_t>(stream)), "cudaMemcpyAsync");
  });
}

C_Status CopyToPeerOnStream(const C_Device to_device, const C_Device from_device, C_Stream stream, void* to,
                            const void* from, size_t size) {
  if (size == 0) return C_SUCCESS;
  return Guarded("copy between devices on a stream", [&] {
    UseDevice(from_device->id);
    Must(cudaMemcpyPeerAsync(to, to_device->id, from, from_device->id, size, reinterpret_cast<cudaStream_t>(stream)),
         "cudaMemcpyPeerAsync");
  });
}

C_Status MemoryStats(const C_Device device, size_t* total, size_t* free) {
  return Guarded("memory_stats", [&] {
    UseDevice(device->id);
    Must(cudaMemGetInfo(free, total), "cudaMemGetInfo");
  });
}

// Addresses and sizes of tensors are multiples of this: what cudaMalloc gives, and enough for every vector load.
C_Status Alignment(const C_Device, size_t* bytes) {
  *bytes = 256;
  return C_SUCCESS;
}

// No kernel reads past the end of a tensor; Paddle's default may add room for those that do.
C_Status Padding(const C_Device, size_t* bytes) {
  *bytes = 0;
  return C_SUCCESS;
}

}  // namespace

void FillMemory(C_DeviceInterface* interface) {
  interface->device_memory_allocate = Allocate;
  interface->device_memory_deallocate = Free;
  interface->device_memory_set = Set;
  interface->host_memory_allocate = AllocateHost;
  interface->host_memory_deallocate = FreeHost;
  interface->memory_copy_h2d = Copy;
  interface->memory_copy_d2h = Copy;
  interface->memory_copy_d2d = Copy;
  interface->memory_copy_p2p = CopyToPeer;
  interface->async_memory_copy_h2d = CopyOnStream;
  interface->async_memory_copy_d2h = CopyOnStream;
  interface->async_memory_copy_d2d = CopyOnStream;
  interface->async_memory_copy_p2p = CopyToPeerOnStream;
  interface->device_memory_stats = MemoryStats;
  interface->device_min_chunk_size = Alignment;
  interface->device_extra_padding_size = Padding;
}

}  // namespace nvgpu
