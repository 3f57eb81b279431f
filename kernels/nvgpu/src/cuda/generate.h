// Tensors made of numbers that are known beforehand: progressions, the identity, one-hot rows.
#pragma once
#include "types.h"

namespace nvgpu {

// to[i] = start + i * step: integer dtypes exactly, the others in fp64.
void Arange(Dtype dtype, int64_t start, int64_t step, int64_t n, void* to, cudaStream_t stream);
void Arange(Dtype dtype, double start, double step, int64_t n, void* to, cudaStream_t stream);

// n numbers from start to stop, both included.
void Linspace(Dtype dtype, double start, double stop, int64_t n, void* to, cudaStream_t stream);

// to[rows, columns]: the element `one` (host memory) where row == column, else zeros.
void Eye(int64_t size, const void* one, int64_t rows, int64_t columns, void* to, cudaStream_t stream);

// to[i, c] = 1 where ids[i] == c, else 0; ids outside give rows of zeros.
void OneHot(Dtype id_type, const void* ids, int64_t n, int64_t classes, float* to, cudaStream_t stream);

}  // namespace nvgpu
