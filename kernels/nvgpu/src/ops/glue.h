// From Paddle's tensors and contexts to what the kernels take.
#pragma once
#include <vector>

#include "../cuda/types.h"
#include "paddle/phi/backends/all_context.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_registry.h"

// For registrations of what works on any dtype.
#define NVGPU_ANY bool, uint8_t, int8_t, int16_t, int, int64_t, float, double, nvgpu::fp16, nvgpu::bf16

namespace nvgpu {

using phi::CustomContext;
using phi::DenseTensor;
using bf16 = phi::dtype::bfloat16;
using fp16 = phi::dtype::float16;

inline cudaStream_t StreamOf(const CustomContext& ctx) { return reinterpret_cast<cudaStream_t>(ctx.stream()); }

inline Dtype DtypeOf(phi::DataType type) {
  switch (type) {
    case phi::DataType::BOOL: return Dtype::kBool;
    case phi::DataType::UINT8: return Dtype::kUInt8;
    case phi::DataType::INT8: return Dtype::kInt8;
    case phi::DataType::INT16: return Dtype::kInt16;
    case phi::DataType::INT32: return Dtype::kInt32;
    case phi::DataType::INT64: return Dtype::kInt64;
    case phi::DataType::FLOAT16: return Dtype::kFloat16;
    case phi::DataType::BFLOAT16: return Dtype::kBFloat16;
    case phi::DataType::FLOAT32: return Dtype::kFloat32;
    case phi::DataType::FLOAT64: return Dtype::kFloat64;
    default: PADDLE_THROW(common::errors::Unimplemented("nvgpu has no dtype %s", phi::DataTypeToString(type)));
  }
}
inline Dtype DtypeOf(const DenseTensor& x) { return DtypeOf(x.dtype()); }

// What a kernel registered for T is called with. In place, x.dtype() is the result's: x and out are one tensor.
template <typename T> inline Dtype DtypeFor() { return DtypeOf(phi::CppTypeToDataType<T>::Type()); }

// The tensor's own axes and strides (plug-in kernels are handed contiguous inputs unless they say otherwise).
inline Strided StridedOf(const DenseTensor& x) {
  Strided s;
  s.rank = x.dims().size();
  for (int i = 0; i < s.rank; ++i) s.dims[i] = x.dims()[i];
  for (int i = 0; i < s.rank; ++i) s.strides[i] = x.strides()[i];
  return s;
}

// Row-major strides over `dims`.
inline Strided ContiguousOf(const phi::DDim& dims) {
  Strided s;
  s.rank = dims.size();
  int64_t stride = 1;
  for (int i = s.rank - 1; i >= 0; --i) {
    s.dims[i] = dims[i];
    s.strides[i] = stride;
    stride *= dims[i];
  }
  return s;
}

// Contiguous x as seen from the broadcast shape `to` (numpy's rule: axes are matched from the last).
inline Strided BroadcastOf(const phi::DDim& from, const phi::DDim& to) {
  Strided own = ContiguousOf(from), s = ContiguousOf(to);
  int missing = s.rank - own.rank;
  for (int i = 0; i < s.rank; ++i) s.strides[i] = i < missing || own.dims[i - missing] == 1 ? 0 : own.strides[i - missing];
  return s;
}

// The dims of two tensors together by numpy's rule.
inline phi::DDim BroadcastDims(const phi::DDim& x, const phi::DDim& y) {
  std::vector<int64_t> dims(std::max(x.size(), y.size()), 1);
  for (int i = 1; i <= x.size(); ++i) dims[dims.size() - i] = x[x.size() - i];
  for (int i = 1; i <= y.size(); ++i)
    if (y[y.size() - i] != 1) dims[dims.size() - i] = y[y.size() - i];
  return phi::make_ddim(dims);
}

// x, or a copy of it where `out` has its memory: for results whose elements have another size than x's. T: x's type.
template <typename T> DenseTensor Unshared(const CustomContext& ctx, const DenseTensor& x, const DenseTensor& out) {
  if (!x.initialized() || !out.IsSharedWith(x)) return x;
  DenseTensor copy;
  copy.Resize(x.dims());
  ctx.template Alloc<T>(&copy);
  cudaError_t error = cudaMemcpyAsync(copy.data(), static_cast<const void*>(x.data()), x.numel() * sizeof(T),
                                      cudaMemcpyDeviceToDevice, StreamOf(ctx));
  PADDLE_ENFORCE_EQ(error, cudaSuccess, common::errors::External("nvgpu: copy: %s", cudaGetErrorString(error)));
  return copy;
}

}  // namespace nvgpu
