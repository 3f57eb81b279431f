// Convolution through cuDNN. Nothing here synchronises, measures or takes memory.
#pragma once
#include <memory>

#include "../cuda/types.h"

namespace nvgpu {

// Sizes of a forward convolution. channels_last: x and out are NHWC and the filter is OHWI; else NCHW and OIHW.
struct ConvShape {
  int batch, channels, height, width;  // of x
  int filters, filter_height, filter_width;
  int out_height, out_width;
  int pad_height, pad_width;  // on both sides
  int stride_height, stride_width;
  int dilation_height, dilation_width;
  int groups;
  int channels_last;
};

// A chosen kernel and the memory that it needs while it runs.
class Convolution {
 public:
  virtual ~Convolution() = default;
  virtual size_t Workspace() const = 0;
  virtual void Run(const void* x, const void* filter, void* workspace, void* out, cudaStream_t stream) = 0;
};

// By cuDNN's heuristics, remembered by shape; kept as long as the process lives or the cache holds it.
// fp32 is computed in true fp32 (no TF32), fp16 and bf16 on tensor cores with sums in fp32.
std::shared_ptr<Convolution> ConvolutionOf(Dtype dtype, const ConvShape& shape);

}  // namespace nvgpu
