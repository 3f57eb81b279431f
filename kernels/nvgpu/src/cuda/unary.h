// Functions of one tensor; out is contiguous like x and may be x.
#pragma once
#include "types.h"

namespace nvgpu {

// A number that comes with an op. Integer tensors take `whole`, which fp64 could not hold.
struct Number {
  double real = 0;
  int64_t whole = 0;
};

// floats
enum class FloatOp {
  kRelu, kRelu6, kLeakyRelu, kGeluErf, kGeluTanh, kSilu, kSigmoid, kLogSigmoid, kSoftplus, kMish, kHardSwish,
  kTanh, kErf, kExp, kExpm1, kLog, kLog2, kLog10, kLog1p, kSqrt, kRsqrt, kReciprocal, kSin, kCos, kTan,
  kFloor, kCeil, kTrunc, kRound, kRoundTens, kDivScale
};
void Unary(FloatOp op, Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream, double p = 0,
           double q = 0);

// floats, int32 and int64. kScaleLast: p x + q, kScaleSum: p (x + q), kClip: to [p, q], kPow: x^p.
enum class NumberOp { kAbs, kSign, kSquare, kPow, kScaleLast, kScaleSum, kClip };
void Unary(NumberOp op, Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream, Number p = {},
           Number q = {});

// any dtype, out is bool
enum class TestOp { kIsNan, kIsInf, kIsFinite, kIsZero };
void Unary(TestOp op, Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream);

// integers (by their size) and bool
void BitwiseNot(Dtype dtype, const void* x, void* out, int64_t n, cudaStream_t stream);

// every dtype to every dtype
void Cast(Dtype from, Dtype to, const void* x, void* out, int64_t n, cudaStream_t stream);

}  // namespace nvgpu
