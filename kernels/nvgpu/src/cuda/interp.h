// Images resized: nearest and bilinear.
#pragma once
#include "types.h"

namespace nvgpu {

// [planes, in_h, in_w, channels] to [planes, out_h, out_w, channels]: NCHW has N * C planes of 1 channel, NHWC N of C.
struct Resize {
  int64_t planes;
  int channels, in_h, in_w, out_h, out_w;
  float ratio_h, ratio_w;  // pixels of the source for one of the result
  bool align_corners;
  bool half_pixel;  // bilinear: pixels are areas, whose centres are what is aligned (align_mode 0)
};

void ResizeNearest(int64_t size, const Resize& resize, const void* from, void* to, cudaStream_t stream);
void ResizeBilinear(Dtype dtype, const Resize& resize, const void* from, void* to, cudaStream_t stream);

}  // namespace nvgpu
