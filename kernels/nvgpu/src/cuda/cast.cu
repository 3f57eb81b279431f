#include "unary.h"
#include "vector.cuh"

namespace nvgpu {
namespace {

// Through the type each side is computed in: fp16 and bf16 are converted from and to fp32 only.
template <typename To> struct Convert {
  template <typename C> __device__ compute_t<To> operator()(C x) const { return static_cast<compute_t<To>>(x); }
};

template <typename From> void CastFrom(Dtype to, const void* x, void* out, int64_t n, cudaStream_t stream) {
  NVGPU_ALL(to, "cast", (Map<From, T>(Convert<T>(), x, out, n, stream)));
}

}  // namespace

void Cast(Dtype from, Dtype to, const void* x, void* out, int64_t n, cudaStream_t stream) {
  NVGPU_ALL(from, "cast", CastFrom<T>(to, x, out, n, stream));
}

}  // namespace nvgpu
