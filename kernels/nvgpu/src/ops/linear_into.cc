// x W + b, or its GELU, stored at an address, for Python through ctypes (kernels/nvgpu/products.py): Paddle's tensors
// cannot lie in another GPU's memory.
#include <memory>

#include "../runtime/runtime.h"
#include "blas.h"


namespace nvgpu {
namespace {

// Memory for the timing of algorithms, freed behind it.
struct Memory {
  void* pointer = nullptr;
  explicit Memory(int64_t bytes) { Must(cudaMalloc(&pointer, bytes), "cudaMalloc"); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(pointer); }
};

Dtype DtypeOfBytes(int bytes, bool bfloat) {
  if (bytes == 4) return Dtype::kFloat32;
  return bfloat ? Dtype::kBFloat16 : Dtype::kFloat16;
}

}  // namespace
}  // namespace nvgpu

extern "C" {

// sizes: m, n, k, then the pitches of x, W and out in elements. gelu: its tanh form behind it. Returns 0 on success.
int nvgpu_linear_into(int bytes, int bfloat, int gelu, const int64_t* sizes, const void* x, const void* weight,
                      const void* bias, void* out, void* stream) {
  using namespace nvgpu;
  const C_Status status = Guarded("linear_into", [&] {
    UseDevice(CurrentDevice());
    GemmShape shape;
    shape.m = sizes[0], shape.n = sizes[1], shape.k = sizes[2];
    shape.pitch_x = sizes[3], shape.pitch_y = sizes[4], shape.pitch_out = sizes[5];
    std::unique_ptr<Memory> held;
    const Scratch scratch = [&held](int64_t wanted) {
      held = std::make_unique<Memory>(wanted);
      return held->pointer;
    };
    const Epilogue epilogue = gelu ? Epilogue::kBiasGelu : Epilogue::kBias;
    if (!GemmBias(DtypeOfBytes(bytes, bfloat), shape, epilogue, x, weight, bias, out, scratch,
                  reinterpret_cast<cudaStream_t>(stream)))
      throw std::runtime_error("cuBLASLt has no kernel for this product");
  });
  return status == C_SUCCESS ? 0 : 1;
}

}  // extern "C"
