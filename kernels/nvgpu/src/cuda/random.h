#pragma once
#include "types.h"

namespace nvgpu {

// Random numbers of Philox4x32-10: number i is a function of (seed, offset, i) alone, whatever the launch.
struct Philox {
  uint64_t seed = 0;
  uint64_t offset = 0;
};

// How far n numbers move a generator's offset: one step gives 4.
inline uint64_t PhiloxSteps(int64_t n) { return static_cast<uint64_t>((n + 3) / 4); }

void RandomNormal(Dtype dtype, Philox from, double mean, double std, void* out, int64_t n, cudaStream_t stream);
void RandomUniform(Dtype dtype, Philox from, double low, double high, void* out, int64_t n, cudaStream_t stream);
void RandomExponential(Dtype dtype, Philox from, double rate, void* out, int64_t n, cudaStream_t stream);
// Normal, cut to [low, high] (absolute, not in units of std).
void RandomTruncatedNormal(Dtype dtype, Philox from, double mean, double std, double low, double high, void* out,
                           int64_t n, cudaStream_t stream);
// Integers in [low, high).
void RandomIntegers(Dtype dtype, Philox from, int64_t low, int64_t high, void* out, int64_t n, cudaStream_t stream);
// 1 with the probability that x has there, otherwise 0.
void RandomBernoulli(Dtype dtype, Philox from, const void* x, void* out, int64_t n, cudaStream_t stream);
// 0 .. n - 1 in some order.
void RandomPermutation(Dtype dtype, Philox from, void* out, int64_t n, cudaStream_t stream);
// out = kept ? x * scale : 0, each kept with probability 1 - p; mask (may be null) says which.
void RandomDropout(Dtype dtype, Philox from, double p, double scale, const void* x, void* out, uint8_t* mask, int64_t n,
                   cudaStream_t stream);

}  // namespace nvgpu
