// Two tensors of one dtype, broadcast: xs and ys carry the result's dims, with stride 0 where a tensor is repeated.
#pragma once
#include "types.h"

namespace nvgpu {

enum class BinaryOp {
  kAdd, kSubtract, kMultiply, kDivide, kMaximum, kMinimum, kFmax, kFmin, kPow, kRemainder, kFloorDivide
};

// floats, int32 and int64
void Binary(BinaryOp op, Dtype dtype, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out,
            cudaStream_t stream);

}  // namespace nvgpu
