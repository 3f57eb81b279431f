// Copies between strided tensors, and tensors that are filled from the host.
#pragma once
#include "types.h"

namespace nvgpu {

// out[...] = x[...] over the same dims, by the size of an element; x and out do not overlap.
void CopyStrided(int size, const Strided& from, const Strided& to, const void* x, void* out, cudaStream_t stream);

// n times the element that `value`, in host memory, points to.
void Fill(int size, const void* value, void* out, int64_t n, cudaStream_t stream);

// Host memory to the device; it may be freed at once, and up to 64 KiB travel inside a kernel's arguments, so that a
// CUDA graph keeps them.
void Upload(const void* host, void* device, int64_t bytes, cudaStream_t stream);

}  // namespace nvgpu
