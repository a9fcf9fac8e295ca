// The micro-kernel of the product: one tile of C over one chunk of K, all of it in registers.
#pragma once

#include <utility>

#include "../numerics/order.h"
#include "../numerics/vector.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class T>
struct Tile {
  int64_t K;  // of one chunk
  const T* a;
  int64_t a_row, a_column;
  const T* b;  // columns contiguous, and readable over the tile's full width
  int64_t b_row;
  T* total;
  int64_t total_row;
  int64_t columns;  // those of the tile that exist
  bool first;       // chunk: its result is the total; later ones are added to it
};

template <class T, int ROWS, int VECTORS>
void multiply_tile(const Tile<T>& t) {
  using V = Vector<T>;
  V sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) sums[i][j] = constant<V>(T(0));

  const T *a = t.a, *b = t.b;
  for (int64_t k = 0; k < t.K; k++, a += t.a_column, b += t.b_row) {
    V line[VECTORS];
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) line[j] = load(b + j * V::size);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      V x(a[i * t.a_row]);
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; j++) sums[i][j] = fma(x, line[j], sums[i][j]);
    }
  }

#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) {
      T* total = t.total + i * t.total_row + j * V::size;
      int64_t left = t.columns - j * V::size;
      store(total, t.first ? sums[i][j] : add(load(total, left, T(0)), sums[i][j]), left);
    }
}

// The most rows of a tile 1, 2, 4 and 8 vectors wide: what the registers hold beside a row of B and an element of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS[] = {14, 14, 6, 3};
#elif defined(__AVX2__)
constexpr int TILE_ROWS[] = {12, 6, 3, 1};
#else
constexpr int TILE_ROWS[] = {4, 2, 1, 1};
#endif

struct TileShape {
  int rows, log2_vectors;
  int64_t width(int lanes) const { return int64_t(lanes) << log2_vectors; }
};

// log2 of the vectors that cover n columns, 8 at most.
inline int log2_vectors_for(int64_t n, int lanes) {
  int log2 = 0;
  while (log2 < 3 && n > int64_t(lanes) << log2) log2++;
  return log2;
}

// Two vectors wide where there are rows enough to keep the multipliers busy, wider for fewer rows; the rows are dealt
// evenly.
inline TileShape tile_shape(int64_t M, int64_t N, int lanes) {
  int log2 = log2_vectors_for(N, lanes);
  while (log2 > 1 && TILE_ROWS[log2] < M) log2--;
  int64_t tiles = (M + TILE_ROWS[log2] - 1) / TILE_ROWS[log2];
  return {static_cast<int>((M + tiles - 1) / tiles), log2};
}

template <class T>
using TileFunction = void (*)(const Tile<T>&);

template <class T, int LOG2_VECTORS, int... ROW>
TileFunction<T> tile_function(int rows, std::integer_sequence<int, ROW...>) {
  static constexpr TileFunction<T> functions[] = {multiply_tile<T, ROW + 1, 1 << LOG2_VECTORS>...};
  return functions[rows - 1];
}
template <class T>
TileFunction<T> tile_function(TileShape shape) {
  switch (shape.log2_vectors) {
    case 0: return tile_function<T, 0>(shape.rows, std::make_integer_sequence<int, TILE_ROWS[0]>{});
    case 1: return tile_function<T, 1>(shape.rows, std::make_integer_sequence<int, TILE_ROWS[1]>{});
    case 2: return tile_function<T, 2>(shape.rows, std::make_integer_sequence<int, TILE_ROWS[2]>{});
    default: return tile_function<T, 3>(shape.rows, std::make_integer_sequence<int, TILE_ROWS[3]>{});
  }
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
