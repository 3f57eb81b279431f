#include "binary.h"

#include <type_traits>

#include "broadcast.cuh"

namespace nvgpu {
namespace {

template <typename C> constexpr bool kWhole = std::is_integral_v<C>;

struct Add {
  template <typename C> __device__ C operator()(C a, C b) const { return a + b; }
};
struct Subtract {
  template <typename C> __device__ C operator()(C a, C b) const { return a - b; }
};
struct Multiply {
  template <typename C> __device__ C operator()(C a, C b) const { return a * b; }
};
struct Divide {
  template <typename C> __device__ C operator()(C a, C b) const { return a / b; }
};

// NaN if either is; `Fmax` and `Fmin` take the number instead.
struct Maximum {
  template <typename C> __device__ C operator()(C a, C b) const { return a > b || a != a ? a : b; }
};
struct Minimum {
  template <typename C> __device__ C operator()(C a, C b) const { return a < b || a != a ? a : b; }
};
struct Fmax {
  template <typename C> __device__ C operator()(C a, C b) const { return a >= b || b != b ? a : b; }
};
struct Fmin {
  template <typename C> __device__ C operator()(C a, C b) const { return a <= b || b != b ? a : b; }
};

// Whole numbers go through fp64, as Paddle's do.
struct Pow {
  template <typename C> __device__ C operator()(C a, C b) const {
    if constexpr (kWhole<C>)
      return static_cast<C>(llrint(pow(static_cast<double>(a), static_cast<double>(b))));
    else
      return pow(a, b);
  }
};

// The sign of the divisor, as in Python.
struct Remainder {
  template <typename C> __device__ C operator()(C a, C b) const {
    C r;
    if constexpr (kWhole<C>)
      r = a % b;
    else
      r = fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
  }
};

// Rounded towards minus infinity, as in Python. For floats a - fmod(a, b) is a multiple of b: nothing is rounded twice.
struct FloorDivide {
  template <typename C> __device__ C operator()(C a, C b) const {
    C r, q;
    if constexpr (kWhole<C>) {
      r = a % b;
      q = a / b;
    } else {
      if (b == 0) return a / b;
      r = fmod(a, b);
      q = rint((a - r) / b);
    }
    return r != 0 && (r < 0) != (b < 0) ? q - 1 : q;
  }
};

template <typename F>
void Run(F f, Dtype dtype, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out,
         cudaStream_t stream) {
  NVGPU_NUMBERS(dtype, "elementwise", (Binary<T, T>(f, xs, ys, x, y, out, stream)));
}

}  // namespace

void Binary(BinaryOp op, Dtype dtype, const Strided& xs, const Strided& ys, const void* x, const void* y, void* out,
            cudaStream_t stream) {
  auto run = [&](auto f) { Run(f, dtype, xs, ys, x, y, out, stream); };
  switch (op) {
    case BinaryOp::kAdd: return run(Add());
    case BinaryOp::kSubtract: return run(Subtract());
    case BinaryOp::kMultiply: return run(Multiply());
    case BinaryOp::kDivide: return run(Divide());
    case BinaryOp::kMaximum: return run(Maximum());
    case BinaryOp::kMinimum: return run(Minimum());
    case BinaryOp::kFmax: return run(Fmax());
    case BinaryOp::kFmin: return run(Fmin());
    case BinaryOp::kPow: return run(Pow());
    case BinaryOp::kRemainder: return run(Remainder());
    case BinaryOp::kFloorDivide: return run(FloorDivide());
  }
}

}  // namespace nvgpu
