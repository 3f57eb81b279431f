// How two products are cut into tiles for one launch: kernels/linear_hopper_tiles.py, for results that are whole tensors.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace sd3par {

// What kernels were compiled with, as SHAPES of kernels/linear_hopper.py: warp groups of 64 rows, columns, steps that
// are in shared memory at once, tiles on top of each other before the next columns come.
struct TileShape {
  std::int64_t groups, columns, stages, band;
};

// The table that programs read: 16 numbers a line, the first line for all, then one for each slot and program.
struct TileTable {
  TileShape shape;
  std::int64_t programs;
  std::vector<std::array<std::int64_t, 16>> lines;
};

// For products of rows[i] rows, `terms` and `columns` alike, by at most so many programs.
TileTable TilesOf(const std::vector<std::int64_t>& rows, std::int64_t terms, std::int64_t columns,
                  std::int64_t programs);

}  // namespace sd3par
