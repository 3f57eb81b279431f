// Comparisons and logic with bool results, bits of integers, and the choice between two tensors; all with broadcast.
#pragma once
#include "types.h"

namespace nvgpu {

enum class CompareOp { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kAnd, kOr, kXor };
enum class BitOp { kAnd, kOr, kXor };

// any dtype, out is bool
void Compare(CompareOp op, Dtype dtype, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out,
             cudaStream_t stream);

// integers and bool, by the size of an element
void Bitwise(BitOp op, int size, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out,
             cudaStream_t stream);

// out = mask ? x : y, by the size of an element
void Select(int size, const Strided& masks, const Strided& xs, const Strided& ys, const void* mask, const void* x,
            const void* y, void* out, cudaStream_t stream);

}  // namespace nvgpu
