// Ops of two tensors, with broadcasting.
#include "../cuda/binary.h"

#include "../cuda/compare.h"
#include "glue.h"

namespace nvgpu {
namespace {

template <typename T>
void RunBinary(const CustomContext& ctx, BinaryOp op, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  ctx.template Alloc<T>(out);
  Binary(op, DtypeFor<T>(), BroadcastOf(x.dims(), out->dims()), BroadcastOf(y.dims(), out->dims()), x.data(), y.data(),
         out->data(), StreamOf(ctx));
}

void RunBits(const CustomContext& ctx, BitOp op, const DenseTensor& x, const DenseTensor& y, DenseTensor* out,
                    int size) {
  Bitwise(op, size, BroadcastOf(x.dims(), out->dims()), BroadcastOf(y.dims(), out->dims()), x.data(), y.data(),
          out->data(), StreamOf(ctx));
}

template <typename T>
void RunCompare(const CustomContext& ctx, CompareOp op, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  DenseTensor own_x = Unshared<T>(ctx, x, *out), own_y = Unshared<T>(ctx, y, *out);
  Strided xs = BroadcastOf(x.dims(), out->dims()), ys = BroadcastOf(y.dims(), out->dims());
  ctx.template Alloc<bool>(out);
  Compare(op, DtypeFor<T>(), xs, ys, own_x.data(), own_y.data(), out->data(), StreamOf(ctx));
}

}  // namespace

// Paddle's sum of bools is "or", their product "and".
template <typename T, typename Context>
void AddKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  if constexpr (!std::is_same_v<T, bool>) return RunBinary<T>(ctx, BinaryOp::kAdd, x, y, out);
  ctx.template Alloc<bool>(out);
  RunBits(ctx, BitOp::kOr, x, y, out, 1);
}
template <typename T, typename Context>
void MultiplyKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {
  if constexpr (!std::is_same_v<T, bool>) return RunBinary<T>(ctx, BinaryOp::kMultiply, x, y, out);
  ctx.template Alloc<bool>(out);
  RunBits(ctx, BitOp::kAnd, x, y, out, 1);
}

template <typename T, typename Context>
void WhereKernel(const Context& ctx, const DenseTensor& condition, const DenseTensor& x, const DenseTensor& y,
                 DenseTensor* out) {
  ctx.template Alloc<T>(out);
  const auto& dims = out->dims();
  Select(sizeof(T), BroadcastOf(condition.dims(), dims), BroadcastOf(x.dims(), dims), BroadcastOf(y.dims(), dims),
         condition.data(), x.data(), y.data(), out->data(), StreamOf(ctx));
}

template <typename T, typename Context>
void MaskedFillKernel(const Context& ctx, const DenseTensor& x, const DenseTensor& mask, const DenseTensor& value,
                      DenseTensor* out) {
  phi::DDim dims = BroadcastDims(x.dims(), mask.dims());
  Strided xs = BroadcastOf(x.dims(), dims), masks = BroadcastOf(mask.dims(), dims);
  out->Resize(dims);
  ctx.template Alloc<T>(out);
  Select(sizeof(T), masks, BroadcastOf(value.dims(), dims), xs, mask.data(), value.data(), x.data(), out->data(),
         StreamOf(ctx));
}

}  // namespace nvgpu

#define NVGPU_BOOL_OUT(op, Kernel, ...)                                 \
  PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, Kernel, __VA_ARGS__) { \
    kernel->OutputAt(0).SetDataType(phi::DataType::BOOL);               \
  }

#define NVGPU_BINARY(op, Name)                                                                             \
  namespace nvgpu {                                                                                        \
  template <typename T, typename Context>                                                                  \
  void Name##Kernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) {    \
    RunBinary<T>(ctx, BinaryOp::k##Name, x, y, out);                                                       \
  }                                                                                                        \
  }                                                                                                        \
  PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Name##Kernel, int, int64_t, nvgpu::fp16, nvgpu::bf16, float, \
                            double) {}

#define NVGPU_COMPARE(op, Name)                                                                            \
  namespace nvgpu {                                                                                        \
  template <typename T, typename Context>                                                                  \
  void Compare##Name##Kernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) { \
    RunCompare<T>(ctx, CompareOp::k##Name, x, y, out);                                                     \
  }                                                                                                        \
  }                                                                                                        \
  NVGPU_BOOL_OUT(op, nvgpu::Compare##Name##Kernel, NVGPU_ANY)

#define NVGPU_BITWISE(op, Name)                                                                            \
  namespace nvgpu {                                                                                        \
  template <typename T, typename Context>                                                                  \
  void Bitwise##Name##Kernel(const Context& ctx, const DenseTensor& x, const DenseTensor& y, DenseTensor* out) { \
    ctx.template Alloc<T>(out);                                                                            \
    RunBits(ctx, BitOp::k##Name, x, y, out, sizeof(T));                                                    \
  }                                                                                                        \
  }                                                                                                        \
  PD_REGISTER_PLUGIN_KERNEL(op, nvgpu, ALL_LAYOUT, nvgpu::Bitwise##Name##Kernel, bool, uint8_t, int8_t, int16_t, int,  \
                            int64_t) {}

PD_REGISTER_PLUGIN_KERNEL(add, nvgpu, ALL_LAYOUT, nvgpu::AddKernel, bool, int, int64_t, nvgpu::fp16, nvgpu::bf16, float,
                          double) {}
PD_REGISTER_PLUGIN_KERNEL(multiply, nvgpu, ALL_LAYOUT, nvgpu::MultiplyKernel, bool, int, int64_t, nvgpu::fp16,
                          nvgpu::bf16, float, double) {}
NVGPU_BINARY(subtract, Subtract)
NVGPU_BINARY(divide, Divide)
NVGPU_BINARY(maximum, Maximum)
NVGPU_BINARY(minimum, Minimum)
NVGPU_BINARY(fmax, Fmax)
NVGPU_BINARY(fmin, Fmin)
NVGPU_BINARY(elementwise_pow, Pow)
NVGPU_BINARY(remainder, Remainder)
NVGPU_BINARY(floor_divide, FloorDivide)

NVGPU_COMPARE(equal, Equal)
NVGPU_COMPARE(not_equal, NotEqual)
NVGPU_COMPARE(less_than, Less)
NVGPU_COMPARE(less_equal, LessEqual)
NVGPU_COMPARE(greater_than, Greater)
NVGPU_COMPARE(greater_equal, GreaterEqual)
NVGPU_COMPARE(logical_and, And)
NVGPU_COMPARE(logical_or, Or)
NVGPU_COMPARE(logical_xor, Xor)

NVGPU_BITWISE(bitwise_and, And)
NVGPU_BITWISE(bitwise_or, Or)
NVGPU_BITWISE(bitwise_xor, Xor)

PD_REGISTER_PLUGIN_KERNEL(where, nvgpu, ALL_LAYOUT, nvgpu::WhereKernel, NVGPU_ANY) {
  kernel->InputAt(0).SetDataType(phi::DataType::BOOL);
}
PD_REGISTER_PLUGIN_KERNEL(masked_fill, nvgpu, ALL_LAYOUT, nvgpu::MaskedFillKernel, NVGPU_ANY) {
  kernel->InputAt(1).SetDataType(phi::DataType::BOOL);
}
