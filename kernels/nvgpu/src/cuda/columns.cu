#include "columns.h"

#include "indexing.cuh"

namespace nvgpu {
namespace {

constexpr int kRound = 32;  // tensors a launch, their pointers in its arguments
struct Round {
  void* data[kRound];
  int64_t width[kRound], offset[kRound];
};

// Part blockIdx.y of the round; kJoin: from the parts to the whole, else from the whole to the parts.
template <typename T, typename Index, bool kJoin>
__global__ void ColumnsKernel(const __grid_constant__ Round parts, T* whole, int64_t row_width, Index rows) {
  T* part = static_cast<T*>(parts.data[blockIdx.y]);
  Index width = static_cast<Index>(parts.width[blockIdx.y]);
  T* columns = whole + parts.offset[blockIdx.y];
  Index n = rows * width;
  NVGPU_EACH(Index, i, n) {
    Index row = i / width;
    T* there = columns + row * row_width + (i - row * width);
    if (kJoin) {
      *there = part[i];
    } else {
      part[i] = *there;
    }
  }
}

template <bool kJoin>
void LaunchRound(int64_t wide, int64_t rows, int64_t row_width, const Round& round, int count, void* whole,
                 cudaStream_t stream) {
  int64_t most = *std::max_element(round.width, round.width + count) * rows;
  dim3 grid(Blocks(most), count);
  NVGPU_BYTES(wide, "concat or split",
              NVGPU_INDEX(most, ColumnsKernel<T, Index, kJoin><<<grid, kThreads, 0, stream>>>(
                                    round, static_cast<T*>(whole), row_width, static_cast<Index>(rows))));
  Check(cudaGetLastError(), "concat or split");
}

template <bool kJoin>
void MoveColumns(int64_t size, int64_t rows, int64_t row_width, const std::vector<Columns>& parts, void* whole,
                 cudaStream_t stream) {
  if (rows == 0) return;
  uint64_t bits = Bits(whole) | Bits(row_width * size);
  for (const Columns& part : parts) {
    if (part.width > 0) bits |= Bits(part.data) | Bits(part.width * size) | Bits(part.offset * size);
  }
  int64_t wide = Widest(bits);
  int64_t factor = wide / size;
  Round round;
  int count = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].width > 0) {
      round.data[count] = parts[i].data;
      round.width[count] = parts[i].width / factor;
      round.offset[count++] = parts[i].offset / factor;
    }
    if (count == kRound || (count > 0 && i + 1 == parts.size())) {
      LaunchRound<kJoin>(wide, rows, row_width / factor, round, count, whole, stream);
      count = 0;
    }
  }
}

}  // namespace

void JoinColumns(int64_t size, int64_t rows, int64_t row_width, const std::vector<Columns>& parts, void* whole,
                 cudaStream_t stream) {
  MoveColumns<true>(size, rows, row_width, parts, whole, stream);
}

void SplitColumns(int64_t size, int64_t rows, int64_t row_width, const std::vector<Columns>& parts, const void* whole,
                  cudaStream_t stream) {
  MoveColumns<false>(size, rows, row_width, parts, const_cast<void*>(whole), stream);
}

}  // namespace nvgpu
