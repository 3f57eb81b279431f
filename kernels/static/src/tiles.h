// How one or two products are cut into tiles for one launch: kernels/linear_hopper_tiles.py.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace sd3par {

// How many steps each warp group is ahead of the next, as kernels for so many terms were compiled.
inline std::int64_t LeadFor(std::int64_t terms) { return terms / 64 > 2 ? 2 : terms / 64 - 1; }

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

// Where results of a product go, all columns of some rows: bytes from where the first of its rectangles begins. They
// cover all rows, in this order or another; a row has no gap behind it.
struct Rectangle {
  std::int64_t row, rows, address;
};
using Rectangles = std::vector<Rectangle>;  // of one product

// For products with `terms` and `columns` alike, by at most so many programs.
TileTable TilesOf(const std::vector<Rectangles>& streams, std::int64_t terms, std::int64_t columns, std::int64_t programs);

}  // namespace sd3par
