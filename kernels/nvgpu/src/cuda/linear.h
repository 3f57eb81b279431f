// What matrix products need besides cuBLAS: a bias spread over the output, and activations in place.
#pragma once
#include "types.h"

namespace nvgpu {

// out[i] = scale * x[i] over the contiguous out; x has out's dims, with stride 0 where it is broadcast.
void Expand(Dtype dtype, const Strided& x_axes, double scale, const void* x, void* out, cudaStream_t stream);

enum class Activation : int { kRelu, kGeluTanh };

// x = activation(x), n contiguous elements.
void Activate(Dtype dtype, Activation activation, void* x, int64_t n, cudaStream_t stream);

}  // namespace nvgpu
