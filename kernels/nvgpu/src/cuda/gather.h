// Elements chosen by tensors of ids, read and written: embedding, gather, scatter, x[ids] and their kind.
#pragma once
#include <limits>

#include "types.h"

namespace nvgpu {

// Over `dims`, element y[...] belongs to x[...] moved by ids: by stride[k] for each step of tensor k's id. An id below
// 0 counts from the end of its axis, which has size[k] entries. Strides are in elements; those of x are 0 where ids
// rule.
// Ids outside their axis never touch memory: they read as zeros and write nothing.
struct Indexed {
  int rank = 0;
  int64_t dims[kMaxRank], x[kMaxRank], y[kMaxRank], ids[kMaxRank];
  int tensors = 0;
  const void* id[kMaxRank];
  int64_t size[kMaxRank], stride[kMaxRank];
  Dtype id_type = Dtype::kInt64;  // int32, int64, or bool: one mask, the elements to write (its size and stride unused)
  int64_t zero_id = std::numeric_limits<int64_t>::min();  // reads as zeros (embedding's padding_idx)
};

// y = x at ids; x at ids = y; x at ids += y, where several y may meet (`size`: bytes of an element).
void ReadIndexed(int64_t size, const Indexed& at, const void* x, void* y, cudaStream_t stream);
void WriteIndexed(int64_t size, const Indexed& at, const void* y, void* x, cudaStream_t stream);
void AddIndexed(Dtype dtype, const Indexed& at, const void* y, void* x, cudaStream_t stream);

}  // namespace nvgpu
