// The tiles of C that blocks compute, and how operands lie, for products on the tensor cores and those beside them.
//
// An operand's `lines` are the rows of A or the columns of B; its `depth` runs along K. It is K-major where neighbours
// along K are neighbours in memory, and line-major where neighbouring lines are.
#pragma once

#include "launch.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

enum class Major : int { depth, lines };

// Rows of tiles in whose reach the tiles are taken column by column: the tiles that run at a time then make a part of C
// that is about square, and share A and B in the second-level cache.
constexpr int BAND_ROWS = 16;

struct TileAt {
  int down, across, batch;
};
// Tile `index` of matrices of grid.down rows and grid.across columns of tiles.
template <class Grid>
INLINE_HD TileAt tile_at(const Grid& grid, int64_t index) {
  const int64_t in_matrix = static_cast<int64_t>(grid.down) * grid.across, in_band = int64_t(BAND_ROWS) * grid.across;
  const int64_t i = index % in_matrix;
  const int band = static_cast<int>(i / in_band) * BAND_ROWS;
  const int rows = smaller(BAND_ROWS, grid.down - band);
  const int at = static_cast<int>(i % in_band);
  return {band + at % rows, at / rows, static_cast<int>(index / in_matrix)};
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
