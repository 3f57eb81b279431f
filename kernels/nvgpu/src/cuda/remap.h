// Copies whose source lies elsewhere along some axes: pad, tile, roll; and the triangles of matrices.
#pragma once
#include "types.h"

namespace nvgpu {

// What stands for coordinates before the first or after the last: one value, the mirror image, the nearest, the period.
enum class Border { kConstant, kReflect, kReplicate, kCircular };

// Axis i of the result has to[i] coordinates, of which number before[i] is the source's first; the source has from[i].
struct Window {
  int rank = 0;
  int64_t from[kMaxRank], to[kMaxRank], before[kMaxRank];
};

// `outside`: the element, in host memory, for Border::kConstant; unused otherwise.
void CopyWindow(int64_t size, Border border, const Window& window, const void* outside, const void* from, void* to,
                cudaStream_t stream);

// to = from where column - row <= diagonal (lower) or >= diagonal (upper), else zeros; n elements in matrices.
void CopyTriangle(int64_t size, int64_t n, int64_t rows, int64_t columns, int64_t diagonal, bool lower,
                  const void* from, void* to, cudaStream_t stream);

}  // namespace nvgpu
