#include "random.h"

#include "pack.cuh"

namespace nvgpu {
namespace {

// One step of Philox4x32-10 (Salmon et al., 2011): four random words for a counter and a key.
__device__ uint4 Words(Philox from, uint64_t step) {
  const uint64_t counter = from.offset + step;
  uint4 c = make_uint4(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0);
  uint32_t key0 = static_cast<uint32_t>(from.seed), key1 = static_cast<uint32_t>(from.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ key0, low1, high0 ^ c.w ^ key1, low0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// [0, 1), and (0, 1) for logarithms; as fine as the type allows.
__device__ __forceinline__ float Unit(uint32_t word, float) { return (word >> 8) * 0x1p-24f; }
__device__ __forceinline__ double Unit(uint32_t word, double) { return word * 0x1p-32; }
__device__ __forceinline__ float Inside(uint32_t word, float) { return ((word >> 9) + 0.5f) * 0x1p-23f; }
__device__ __forceinline__ double Inside(uint32_t word, double) { return (word + 0.5) * 0x1p-32; }

__device__ __forceinline__ void SinCosPi(float x, float* s, float* c) { sincospif(x, s, c); }
__device__ __forceinline__ void SinCosPi(double x, double* s, double* c) { sincospi(x, s, c); }

// Box and Muller: two normal numbers of two words. The tail reaches 6.6: of 32 bits for the radius.
template <typename A> __device__ __forceinline__ void Normals(uint32_t a, uint32_t b, A out[2]) {
  const A u = (static_cast<A>(a) + A(0.5)) * A(0x1p-32);
  const A radius = sqrt(A(-2) * log(u));
  A s, c;
  SinCosPi(A(2) * Unit(b, A()), &s, &c);
  out[0] = radius * c;
  out[1] = radius * s;
}

// Calls make(words, i, values) for each step of 4 numbers; values[j] is number i + j.
template <typename T, typename Make>
__global__ void FillKernel(Philox from, Make make, T* out, int64_t n, bool aligned) {
  const int64_t steps = (n + 3) / 4;
  for (int64_t step = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; step < steps;
       step += int64_t(gridDim.x) * blockDim.x) {
    Pack<T, 4> four;
    make(Words(from, step), step * 4, four.at);
    if (aligned && step * 4 + 4 <= n) {
      reinterpret_cast<Pack<T, 4>*>(out)[step] = four;
    } else {
      for (int j = 0; j < 4; ++j)
        if (step * 4 + j < n) out[step * 4 + j] = four.at[j];
    }
  }
}

template <typename T, typename Make> void Fill(Philox from, Make make, void* out, int64_t n, cudaStream_t stream) {
  FillKernel<T, Make><<<Blocks((n + 3) / 4), kThreads, 0, stream>>>(from, make, static_cast<T*>(out), n, Aligned(out));
}

__device__ __forceinline__ void Spread(uint4 words, uint32_t out[4]) {
  out[0] = words.x;
  out[1] = words.y;
  out[2] = words.z;
  out[3] = words.w;
}

template <typename T> struct MakeNormal {
  compute_t<T> mean, std;
  __device__ void operator()(uint4 words, int64_t, T values[4]) const {
    compute_t<T> z[4];
    Normals(words.x, words.y, z);
    Normals(words.z, words.w, z + 2);
    for (int j = 0; j < 4; ++j) values[j] = Store<T>(mean + std * z[j]);
  }
};

template <typename T> struct MakeUniform {
  compute_t<T> low, high;
  __device__ void operator()(uint4 words, int64_t, T values[4]) const {
    using A = compute_t<T>;
    uint32_t word[4];
    Spread(words, word);
    for (int j = 0; j < 4; ++j) {
      values[j] = Store<T>(low + (high - low) * Unit(word[j], A()));
      if (Load(values[j]) >= high) values[j] = Store<T>(low);  // rounded up to what is excluded
    }
  }
};

template <typename T> struct MakeExponential {
  compute_t<T> rate;
  __device__ void operator()(uint4 words, int64_t, T values[4]) const {
    uint32_t word[4];
    Spread(words, word);
    for (int j = 0; j < 4; ++j) values[j] = Store<T>(-log(Inside(word[j], compute_t<T>())) / rate);
  }
};

// By the inverse of the distribution function; below and above: its values at the ends.
template <typename T> struct MakeTruncated {
  compute_t<T> mean, std, low, high, below, above;
  __device__ void operator()(uint4 words, int64_t, T values[4]) const {
    using A = compute_t<T>;
    uint32_t word[4];
    Spread(words, word);
    for (int j = 0; j < 4; ++j) {
      const A share = below + (above - below) * Inside(word[j], A());
      const A value = mean + std * normcdfinv(share);
      values[j] = Store<T>(min(max(value, low), high));
    }
  }
  __device__ static float normcdfinv(float x) { return normcdfinvf(x); }
  __device__ static double normcdfinv(double x) { return ::normcdfinv(x); }
};

template <typename T> struct MakeInteger {
  int64_t low;
  uint64_t range;  // up to 2^32: the product's high word is as good as even
  __device__ void operator()(uint4 words, int64_t, T values[4]) const {
    uint32_t word[4];
    Spread(words, word);
    for (int j = 0; j < 4; ++j) values[j] = static_cast<T>(low + static_cast<int64_t>((word[j] * range) >> 32));
  }
};

template <typename T> struct MakeBernoulli {
  const T* x;
  int64_t n;
  __device__ void operator()(uint4 words, int64_t i, T values[4]) const {
    using A = compute_t<T>;
    uint32_t word[4];
    Spread(words, word);
    for (int j = 0; j < 4; ++j) values[j] = Store<T>(i + j < n && Unit(word[j], A()) < Load(x[i + j]) ? A(1) : A(0));
  }
};

template <typename T> struct MakeDropout {
  const T* x;
  uint8_t* mask;
  int64_t n;
  float p;
  compute_t<T> scale;
  __device__ void operator()(uint4 words, int64_t i, T values[4]) const {
    using A = compute_t<T>;
    uint32_t word[4];
    Spread(words, word);
    for (int j = 0; j < 4 && i + j < n; ++j) {
      const bool kept = Unit(word[j], float()) >= p;
      values[j] = Store<T>(kept ? Load(x[i + j]) * scale : A(0));
      if (mask) mask[i + j] = kept;
    }
  }
};

// A Feistel network permutes [0, 4^half_bits); walking on while the result is n or more makes it a permutation of [0,
// n).
template <typename T> __global__ void PermutationKernel(Philox from, int half_bits, T* out, int64_t n) {
  const Philox keyed{from.seed + 0x9E3779B97F4A7C15u * (from.offset + 1), 0};  // the counters are the rounds' own
  const uint64_t low = (uint64_t(1) << half_bits) - 1;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    uint64_t value = i;
    do {
      uint64_t left = value >> half_bits, right = value & low;
      for (uint64_t round = 0; round < 6; ++round) {
        const uint64_t mixed = left ^ (Words(keyed, (round << 32) | right).x & low);
        left = right;
        right = mixed;
      }
      value = left << half_bits | right;
    } while (value >= static_cast<uint64_t>(n));
    out[i] = static_cast<T>(value);
  }
}

double NormalDistribution(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

}  // namespace

#define NVGPU_FILL(what, dtypes, ...)                              \
  if (n == 0) return;                                              \
  dtypes(dtype, what, Fill<T>(from, __VA_ARGS__, out, n, stream)); \
  Check(cudaGetLastError(), what)

void RandomNormal(Dtype dtype, Philox from, double mean, double std, void* out, int64_t n, cudaStream_t stream) {
  NVGPU_FILL("gaussian", NVGPU_FLOATS, MakeNormal<T>{compute_t<T>(mean), compute_t<T>(std)});
}

void RandomUniform(Dtype dtype, Philox from, double low, double high, void* out, int64_t n, cudaStream_t stream) {
  NVGPU_FILL("uniform", NVGPU_FLOATS, MakeUniform<T>{compute_t<T>(low), compute_t<T>(high)});
}

void RandomExponential(Dtype dtype, Philox from, double rate, void* out, int64_t n, cudaStream_t stream) {
  NVGPU_FILL("exponential", NVGPU_FLOATS, MakeExponential<T>{compute_t<T>(rate)});
}

void RandomTruncatedNormal(Dtype dtype, Philox from, double mean, double std, double low, double high, void* out,
                           int64_t n, cudaStream_t stream) {
  const double below = NormalDistribution((low - mean) / std), above = NormalDistribution((high - mean) / std);
  NVGPU_FILL("truncated_gaussian_random", NVGPU_FLOATS,
             MakeTruncated<T>{compute_t<T>(mean), compute_t<T>(std), compute_t<T>(low), compute_t<T>(high),
                              compute_t<T>(below), compute_t<T>(above)});
}

void RandomIntegers(Dtype dtype, Philox from, int64_t low, int64_t high, void* out, int64_t n, cudaStream_t stream) {
  NVGPU_FILL("randint", NVGPU_NUMBERS, MakeInteger<T>{low, static_cast<uint64_t>(high - low)});
}

void RandomBernoulli(Dtype dtype, Philox from, const void* x, void* out, int64_t n, cudaStream_t stream) {
  NVGPU_FILL("bernoulli", NVGPU_FLOATS, MakeBernoulli<T>{static_cast<const T*>(x), n});
}

void RandomDropout(Dtype dtype, Philox from, double p, double scale, const void* x, void* out, uint8_t* mask, int64_t n,
                   cudaStream_t stream) {
  NVGPU_FILL("dropout", NVGPU_FLOATS, MakeDropout<T>{static_cast<const T*>(x), mask, n, float(p), compute_t<T>(scale)});
}

void RandomPermutation(Dtype dtype, Philox from, void* out, int64_t n, cudaStream_t stream) {
  int half_bits = 1;
  while ((int64_t(1) << (2 * half_bits)) < n) ++half_bits;
  if (n == 0) return;
  NVGPU_NUMBERS(dtype, "randperm",
                PermutationKernel<T><<<Blocks(n), kThreads, 0, stream>>>(from, half_bits, static_cast<T*>(out), n));
  Check(cudaGetLastError(), "randperm");
}

}  // namespace nvgpu
