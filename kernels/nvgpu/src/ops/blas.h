// Matrix products through cuBLAS and cuBLASLt. All matrices are row-major; nothing here takes memory or waits but at the
// first call on a stream or of a shape, so that what has run once can be captured in a CUDA graph.
#pragma once
#include "../cuda/reduce.h"

namespace nvgpu {

// out[i] (m x n) = op(x[i]) (m x k) op(y[i]) (k x n) for i < batch; strides in elements, 0 where shared.
struct GemmShape {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_x = false, transpose_y = false;  // x[i] is stored k x m, y[i] is stored n x k
  int64_t batch = 1, stride_x = 0, stride_y = 0, stride_out = 0;
  int64_t pitch_x = 0, pitch_y = 0, pitch_out = 0;  // elements from row to row as stored, 0: no gaps; GemmBias only
};

// out = alpha * op(x) op(y) + beta * out, where out is not read if beta is 0; m, n, k and batch are not 0.
// fp32 is computed in true fp32, fp16 and bf16 are summed in fp32, fp64 in fp64.
void Gemm(Dtype dtype, const GemmShape& shape, double alpha, const void* x, const void* y, double beta, void* out,
          cudaStream_t stream);

enum class Epilogue : int { kBias, kBiasRelu, kBiasGelu };

// out = epilogue(op(x) op(y) + bias), bias of n elements, batch 1, through cuBLASLt. Its GELU is the tanh form.
// Returns false, and does nothing, where cuBLASLt has no such kernel (never in fp64).
// The first large product of a shape, outside of a capture, waits for the stream and times cuBLASLt's kernels on x, y
// and out, unless this user has done so before (blaslt_choose.h); `scratch` is called then only.
bool GemmBias(Dtype dtype, const GemmShape& shape, Epilogue epilogue, const void* x, const void* y, const void* bias,
              void* out, const Scratch& scratch, cudaStream_t stream);

}  // namespace nvgpu
