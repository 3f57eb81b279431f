#include "gather.h"

#include "indexing.cuh"

namespace nvgpu {
namespace {

bool Joins(const int64_t* strides, int last, int64_t dim, int64_t stride) { return strides[last] == dim * stride; }

// The same elements in the same order with as few axes as possible, at least one.
Indexed Merged(const Indexed& at) {
  Indexed out = at;
  out.rank = 0;
  for (int i = 0; i < at.rank; ++i) {
    int last = out.rank - 1;
    int64_t dim = at.dims[i];
    if (dim == 1) continue;
    bool joins = last >= 0 && Joins(out.x, last, dim, at.x[i]) && Joins(out.y, last, dim, at.y[i]) &&
                 Joins(out.ids, last, dim, at.ids[i]);
    int to = joins ? last : out.rank++;
    out.dims[to] = joins ? out.dims[to] * dim : dim;
    out.x[to] = at.x[i];
    out.y[to] = at.y[i];
    out.ids[to] = at.ids[i];
  }
  if (out.rank == 0) {
    out.rank = 1;
    out.dims[0] = 1;
    out.x[0] = out.y[0] = out.ids[0] = 0;
  }
  return out;
}

// Takes several neighbours of the last axis as one element, where one id moves them all; returns its bytes.
int64_t Widen(Indexed* at, int64_t size, const void* x, const void* y) {
  int last = at->rank - 1;
  if (at->x[last] != 1 || at->y[last] != 1 || at->ids[last] != 0) return size;
  uint64_t bits = Bits(x) | Bits(y) | Bits(at->dims[last] * size);
  for (int i = 0; i < last; ++i) bits |= Bits(at->x[i] * size) | Bits(at->y[i] * size);
  for (int k = 0; k < at->tensors; ++k) bits |= Bits(at->stride[k] * size);
  int64_t wide = Widest(bits);
  int64_t factor = wide / size;
  at->dims[last] /= factor;
  for (int i = 0; i < last; ++i) at->x[i] /= factor;
  for (int i = 0; i < last; ++i) at->y[i] /= factor;
  for (int k = 0; k < at->tensors; ++k) at->stride[k] /= factor;
  return wide;
}

int64_t Count(const Indexed& at) {
  int64_t n = 1;
  for (int i = 0; i < at.rank; ++i) n *= at.dims[i];
  return n;
}

struct Place {
  int64_t x, y;
  bool inside;
};

// Where ids at offset `at` of their tensors move x to.
template <typename Id>
__device__ __forceinline__ void Follow(const Indexed& indexed, int64_t at, Place* place) {
  for (int k = 0; k < indexed.tensors; ++k) {
    int64_t id = static_cast<const Id*>(indexed.id[k])[at];
    place->inside = place->inside && id != indexed.zero_id;
    if (id < 0) id += indexed.size[k];
    place->inside = place->inside && id >= 0 && id < indexed.size[k];
    place->x += id * indexed.stride[k];
  }
}
template <>
__device__ __forceinline__ void Follow<bool>(const Indexed& indexed, int64_t at, Place* place) {
  place->inside = static_cast<const bool*>(indexed.id[0])[at];
}

template <typename Id, typename Index>
__device__ __forceinline__ Place Find(const Indexed& indexed, Index i) {
  Place place = {0, 0, true};
  int64_t ids = 0;
  for (int axis = indexed.rank - 1; axis >= 0; --axis) {
    Index dim = static_cast<Index>(indexed.dims[axis]);
    Index next = axis > 0 ? i / dim : 0;
    Index at = i - next * dim;
    place.x += at * indexed.x[axis];
    place.y += at * indexed.y[axis];
    ids += at * indexed.ids[axis];
    i = next;
  }
  Follow<Id>(indexed, ids, &place);
  return place;
}

struct Read {
  template <typename T>
  __device__ static void Do(const Place& place, T* x, T* y) { y[place.y] = place.inside ? x[place.x] : T{}; }
};
struct Write {
  template <typename T>
  __device__ static void Do(const Place& place, T* x, T* y) { if (place.inside) x[place.x] = y[place.y]; }
};
struct Add {
  template <typename T>
  __device__ static void Do(const Place& place, T* x, T* y) { if (place.inside) atomicAdd(x + place.x, y[place.y]); }
  __device__ static void Do(const Place& place, int64_t* x, int64_t* y) {  // two's complement: the same addition
    Do(place, reinterpret_cast<unsigned long long*>(x), reinterpret_cast<unsigned long long*>(y));
  }
};

template <typename Action, typename T, typename Id, typename Index>
__global__ void IndexedKernel(const __grid_constant__ Indexed indexed, T* x, T* y, Index n) {
  NVGPU_EACH(Index, i, n) Action::Do(Find<Id, Index>(indexed, i), x, y);
}

template <typename Action, typename T, typename Index>
void LaunchIndexed(const Indexed& at, T* x, T* y, int64_t n, cudaStream_t stream) {
  auto kernel = IndexedKernel<Action, T, int64_t, Index>;
  if (at.id_type == Dtype::kInt32) kernel = IndexedKernel<Action, T, int32_t, Index>;
  if (at.id_type == Dtype::kBool) kernel = IndexedKernel<Action, T, bool, Index>;
  kernel<<<Blocks(n), kThreads, 0, stream>>>(at, x, y, static_cast<Index>(n));
}

template <typename Action>
void Move(int64_t size, const Indexed& at, void* x, void* y, cudaStream_t stream) {
  if (Count(at) == 0) return;
  Indexed merged = Merged(at);
  int64_t wide = Widen(&merged, size, x, y);
  int64_t n = Count(merged);
  NVGPU_BYTES(wide, "indexing",
              NVGPU_INDEX(n, LaunchIndexed<Action, T, Index>(merged, static_cast<T*>(x), static_cast<T*>(y), n,
                                                             stream)));
  Check(cudaGetLastError(), "indexing");
}

}  // namespace

void ReadIndexed(int64_t size, const Indexed& at, const void* x, void* y, cudaStream_t stream) {
  Move<Read>(size, at, const_cast<void*>(x), y, stream);
}

void WriteIndexed(int64_t size, const Indexed& at, const void* y, void* x, cudaStream_t stream) {
  Move<Write>(size, at, x, const_cast<void*>(y), stream);
}

void AddIndexed(Dtype dtype, const Indexed& at, const void* y, void* x, cudaStream_t stream) {
  if (Count(at) == 0) return;
  Indexed merged = Merged(at);
  int64_t n = Count(merged);
  NVGPU_NUMBERS(dtype, "adding at ids",
                NVGPU_INDEX(n, LaunchIndexed<Add, T, Index>(merged, static_cast<T*>(x),
                                                            static_cast<T*>(const_cast<void*>(y)), n, stream)));
  Check(cudaGetLastError(), "adding at ids");
}

}  // namespace nvgpu
