// V neighbouring elements that are loaded and stored together, 16 bytes at a time.
#pragma once
#include "device.cuh"

namespace nvgpu {

template <typename T, int V> struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T at[V];
};

// Elements of T in 16 bytes.
template <typename T> constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

inline bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace nvgpu
