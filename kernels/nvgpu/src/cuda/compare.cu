#include "compare.h"

#include "broadcast.cuh"

namespace nvgpu {
namespace {

#define NVGPU_PREDICATE(Name, expression)                                                \
  struct Name {                                                                          \
    template <typename C> __device__ bool operator()(C a, C b) const { return expression; } \
  };
NVGPU_PREDICATE(Equal, a == b)
NVGPU_PREDICATE(NotEqual, a != b)
NVGPU_PREDICATE(Less, a < b)
NVGPU_PREDICATE(LessEqual, a <= b)
NVGPU_PREDICATE(Greater, a > b)
NVGPU_PREDICATE(GreaterEqual, a >= b)
NVGPU_PREDICATE(And, a != C(0) && b != C(0))
NVGPU_PREDICATE(Or, a != C(0) || b != C(0))
NVGPU_PREDICATE(Xor, (a != C(0)) != (b != C(0)))

#define NVGPU_BITS(Name, symbol)                                                                    \
  struct Name {                                                                                     \
    template <typename C> __device__ C operator()(C a, C b) const { return static_cast<C>(a symbol b); } \
  };
NVGPU_BITS(BitAnd, &)
NVGPU_BITS(BitOr, |)
NVGPU_BITS(BitXor, ^)

template <typename T>
void SelectAs(const Strided& masks, const Strided& xs, const Strided& ys, const void* mask, const void* x,
              const void* y, void* out, cudaStream_t stream) {
  constexpr int N = kWidth<T, T>;
  EachPart(Merged<4>({masks, xs, ys, RowMajor(xs)}), [&](const Axes<4>& axes, const int64_t (&offsets)[4]) {
    const uint8_t* m = static_cast<const uint8_t*>(mask) + offsets[0];
    const T* a = static_cast<const T*>(x) + offsets[1];
    const T* b = static_cast<const T*>(y) + offsets[2];
    T* to = static_cast<T*>(out) + offsets[3];
    bool wide = RowsFit(axes, N) && Steps(axes, 0, m, N, 1) && Steps(axes, 1, a, N, sizeof(T)) &&
                Steps(axes, 2, b, N, sizeof(T)) && Aligned(to, N * sizeof(T));
    if (wide)
      SelectKernel<N><<<BlocksOf<N>(axes.numel() / N), kThreads, 0, stream>>>(WalkOf<3>(axes, N), m, a, b, to);
    else
      SelectKernel<1><<<BlocksOf<1>(axes.numel()), kThreads, 0, stream>>>(WalkOf<3>(axes, 1), m, a, b, to);
  });
}

}  // namespace

void Compare(CompareOp op, Dtype dtype, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out,
             cudaStream_t stream) {
  auto run = [&](auto f) { NVGPU_ALL(dtype, "comparison", (Binary<T, bool>(f, xs, ys, x, y, out, stream))); };
  switch (op) {
    case CompareOp::kEqual: return run(Equal());
    case CompareOp::kNotEqual: return run(NotEqual());
    case CompareOp::kLess: return run(Less());
    case CompareOp::kLessEqual: return run(LessEqual());
    case CompareOp::kGreater: return run(Greater());
    case CompareOp::kGreaterEqual: return run(GreaterEqual());
    case CompareOp::kAnd: return run(And());
    case CompareOp::kOr: return run(Or());
    case CompareOp::kXor: return run(Xor());
  }
}

void Bitwise(BitOp op, int size, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out,
             cudaStream_t stream) {
  auto run = [&](auto f) {
    switch (size) {
      case 1: return Binary<uint8_t, uint8_t>(f, xs, ys, x, y, out, stream);
      case 2: return Binary<uint16_t, uint16_t>(f, xs, ys, x, y, out, stream);
      case 4: return Binary<uint32_t, uint32_t>(f, xs, ys, x, y, out, stream);
      case 8: return Binary<uint64_t, uint64_t>(f, xs, ys, x, y, out, stream);
      default: throw std::runtime_error("nvgpu: bitwise: element size not supported");
    }
  };
  switch (op) {
    case BitOp::kAnd: return run(BitAnd());
    case BitOp::kOr: return run(BitOr());
    case BitOp::kXor: return run(BitXor());
  }
}

void Select(int size, const Strided& masks, const Strided& xs, const Strided& ys, const void* mask, const void* x,
            const void* y, void* out, cudaStream_t stream) {
  if (xs.numel() == 0) return;
  NVGPU_BYTES(size, "where", SelectAs<T>(masks, xs, ys, mask, x, y, out, stream));
  Check(cudaGetLastError(), "where");
}

}  // namespace nvgpu
