// What the files of the dry device share.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

// Stubs of the CUDA runtime stay inside the library: another CUDA runtime in the process is not mixed with them.
#define DRY extern "C" __attribute__((visibility("hidden")))

namespace dry {

// Makes `status` what cudaGetLastError gives, and returns it. `why` is written to stderr.
cudaError_t Fail(cudaError_t status, const char* why = nullptr);

bool IsDeviceMemory(const void* pointer);
bool IsCapturing(cudaStream_t stream);

// Whether a capture is under way whose mode forbids this thread to allocate, free and wait.
bool CaptureForbids();

// Lets the device's time pass, which events note.
void Pass(float milliseconds);

size_t MemoryBytes();  // of each device
size_t FreeBytes(int device);

}  // namespace dry
