#pragma once
#include "types.h"

namespace nvgpu {

// softmax, or its logarithm, of contiguous x [outer, length, inner] over `length`. out may be x.
void Softmax(Dtype dtype, bool log, const void* x, void* out, int64_t outer, int64_t length, int64_t inner,
             cudaStream_t stream);

}  // namespace nvgpu
