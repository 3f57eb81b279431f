#include "../cuda/linear.h"
#include "batching.h"
#include "glue.h"

namespace nvgpu {
namespace {

// dims as matrices: a vector x is one row, a vector y (`column`) one column.
Dims MatrixDims(const DenseTensor& x, bool column = false) {
  Dims dims = common::vectorize<int64_t>(x.dims());
  if (dims.size() == 1) dims.insert(column ? dims.end() : dims.begin(), 1);
  return dims;
}

// One product at each position of the axes from `axis` on.
void Products(const MatmulPlan& plan, size_t axis, phi::DataType type, double alpha, const char* x, const char* y,
              double beta, char* out, cudaStream_t stream) {
  if (axis == plan.loops.size()) return Gemm(DtypeOf(type), plan.shape, alpha, x, y, beta, out, stream);
  const BatchAxis& at = plan.loops[axis];
  const int64_t size = static_cast<int64_t>(phi::SizeOf(type));
  for (int64_t i = 0; i < at.size; ++i) {
    Products(plan, axis + 1, type, alpha, x + i * at.x * size, y + i * at.y * size, beta, out + i * at.out * size,
             stream);
  }
}

// out = alpha * op(x) op(y) + beta * out, all allocated, batch dims broadcast, out and the sum over k not empty.
void Multiply(const CustomContext& ctx, const DenseTensor& x, const DenseTensor& y, const MatmulPlan& plan,
              double alpha, double beta, DenseTensor* out) {
  Products(plan, 0, x.dtype(), alpha, static_cast<const char*>(x.data()), static_cast<const char*>(y.data()), beta,
           static_cast<char*>(out->data()), StreamOf(ctx));
}

// Paddle's InferMeta takes the batch dims of the operand with more axes as they are, also where they are 1.
void BroadcastBatch(const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  const int x_rank = x.dims().size(), y_rank = y.dims().size();
  if (x_rank == y_rank || x_rank < 3 || y_rank < 3) return;
  const DenseTensor& fewer = x_rank < y_rank ? x : y;
  Dims dims = common::vectorize<int64_t>(out->dims());
  const int missing = static_cast<int>(dims.size()) - fewer.dims().size();
  for (int i = 0; i < fewer.dims().size() - 2; ++i) {
    if (dims[i + missing] == 1) dims[i + missing] = fewer.dims()[i];
  }
  out->Resize(common::make_ddim(dims));
}

// out = op(x) op(y) into a fresh out; a sum over nothing is 0.
template <typename T>
void MatmulInto(const CustomContext& ctx, const DenseTensor& x, const DenseTensor& y, bool transpose_x,
                bool transpose_y, DenseTensor* out) {
  BroadcastBatch(x, y, out);
  T* data = ctx.template Alloc<T>(out);
  if (out->numel() == 0) return;
  if (x.numel() == 0 || y.numel() == 0) {
    PADDLE_ENFORCE_EQ(cudaMemsetAsync(data, 0, out->numel() * sizeof(T), StreamOf(ctx)), cudaSuccess,
                      common::errors::External("nvgpu: matmul: zeros of %d elements", out->numel()));
    return;
  }
  auto plan = PlanMatmul(MatrixDims(x), MatrixDims(y, true), transpose_x && x.dims().size() > 1,
                         transpose_y && y.dims().size() > 1);
  Multiply(ctx, x, y, plan, 1, 0, out);
}

// out = beta * input + alpha * x y; input is broadcast to out, and may share its memory (addmm_).
template <typename T>
void MultiplyAdd(const CustomContext& ctx, const DenseTensor& input, const DenseTensor& x, const DenseTensor& y,
                 float beta, float alpha, DenseTensor* out) {
  const void* from = input.numel() ? input.data() : nullptr;
  T* data = ctx.template Alloc<T>(out);
  if (out->numel() == 0) return;
  const bool product = x.numel() != 0 && y.numel() != 0;
  // With a product cuBLAS scales by beta; it does not read out if that is 0.
  if (!product || (beta != 0 && from != data)) {
    Expand(DtypeOf(*out), BroadcastOf(input.dims(), out->dims()), product ? 1 : beta, from, data, StreamOf(ctx));
  }
  if (product) Multiply(ctx, x, y, PlanMatmul(MatrixDims(x), MatrixDims(y), false, false), alpha, beta, out);
}

}  // namespace

template <typename T, typename Context>
void MatmulKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, bool transpose_x, bool transpose_y,
                  DenseTensor* out) {
  MatmulInto<T>(ctx, x, y, transpose_x, transpose_y, out);
}

template <typename T, typename Context>
void BmmKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  MatmulInto<T>(ctx, x, y, false, false, out);
}

template <typename T, typename Context>
void MvKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& vec, DenseTensor* out) {
  MatmulInto<T>(ctx, x, vec, false, false, out);
}

// Vectors, or matrices row by row: a batch of products of one row and one column.
template <typename T, typename Context>
void DotKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  const int64_t k = x.dims()[x.dims().size() - 1];
  DenseTensor row(x), column(y);
  row.Resize(common::make_ddim({k ? x.numel() / k : 0, 1, k}));
  column.Resize(common::make_ddim({k ? y.numel() / k : 0, 1, k}));
  MatmulInto<T>(ctx, row, column, false, true, out);
}

template <typename T, typename Context>
void AddmmKernel(const Context& ctx, const DenseTensor& input, const DenseTensor& x, const DenseTensor& y, float beta,
                 float alpha, DenseTensor* out) {
  MultiplyAdd<T>(ctx, input, x, y, beta, alpha, out);
}

template <typename T, typename Context>
void BaddbmmKernel(const Context& ctx, const DenseTensor& input, const DenseTensor& x, const DenseTensor& y, float beta,
                   float alpha, DenseTensor* out) {
  MultiplyAdd<T>(ctx, input, x, y, beta, alpha, out);
}

}  // namespace nvgpu

#define NVGPU_MATMUL(op, Kernel) \
  PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Kernel, float, double, nvgpu::fp16, nvgpu::bf16) {}

NVGPU_MATMUL(matmul, MatmulKernel)
NVGPU_MATMUL(bmm, BmmKernel)
NVGPU_MATMUL(mv, MvKernel)
NVGPU_MATMUL(dot, DotKernel)
NVGPU_MATMUL(addmm, AddmmKernel)
NVGPU_MATMUL(baddbmm, BaddbmmKernel)
