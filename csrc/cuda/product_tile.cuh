// A block's tile of C: how its operands come to shared memory, and what each thread sums in registers.
//
// Shared memory holds two steps of Tile::depth places along K, a line's elements one below the other: element (line, k)
// at [k][line]. One step is multiplied while cp.async brings the next one. That is as much in flight as four steps of
// half the depth, with half the barriers.
//
// A line-major operand lies in memory as it does there, and is copied 16 bytes at once. A K-major one must be turned:
// it is copied by the element, each to its place. Sixteen bytes through registers and four stores would take as many
// instructions and 16 registers, which 64 sums leave no room for. A warp copies 8 places along K of 4 lines, so that it
// reads whole sectors of 32 bytes; as each [k] is 4 banks further than the one before, its 32 elements go to 32 banks.
#pragma once

#include "../numerics/activations.h"
#include "../numerics/order.h"
#include "groups.cuh"
#include "tiles.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// The lanes of a warp, 8 down and 4 across, in such an order that the 16-byte reads of any 8 neighbouring lanes, and of
// any half of the warp, are to different banks or to the same address: 8 addresses of A in a warp, 4 of B.
constexpr int LANES_DOWN = 8, LANES_ACROSS = 4;
INLINE_HD int lane_down(int thread) { return thread % WARP / 2 % LANES_DOWN; }
INLINE_HD int lane_across(int thread) { return thread % 2 + thread % WARP / 16 * 2; }

// Blocks: how many a multiprocessor is to have room for.
template <int Rows, int Columns, int ThreadRows, int ThreadColumns, int Blocks>
struct Tile {
  static constexpr int rows = Rows, columns = Columns, depth = 16, blocks = Blocks;
  static constexpr int thread_rows = ThreadRows, thread_columns = ThreadColumns;
  static constexpr int warp_rows = LANES_DOWN * ThreadRows, warp_columns = LANES_ACROSS * ThreadColumns;
  static constexpr int warps_across = Columns / warp_columns;
  static constexpr int threads = Rows / warp_rows * warps_across * WARP;
  static_assert(PRODUCT_CHUNK % depth == 0 && Rows % warp_rows == 0 && Columns % warp_columns == 0);
};
using LargeTile = Tile<128, 128, 8, 8, 2>;
using MediumTile = Tile<64, 64, 8, 4, 4>;
using SmallTile = Tile<32, 32, 2, 4, 4>;

// [k][line] of one operand's step. Lines are a multiple of 32, and 4 more make the distance that turned operands need.
template <class Tile, class T, int Lines>
struct StepOf {
  static constexpr int width = Lines + 4;
  T at[Tile::depth][width];
};
template <class Tile, class T>
struct alignas(4 * sizeof(T)) Step {
  StepOf<Tile, T, Tile::rows> a;
  StepOf<Tile, T, Tile::columns> b;
};

// The lines of a thread among those of its warp: in groups that one instruction reads, as far apart as the other lanes
// need for theirs.
template <int ThreadLines, int Lanes>
struct ThreadLinesOf {
  static constexpr int group = smaller(ThreadLines, 4), groups = ThreadLines / group;
  static INLINE_HD int line(int lane, int i) { return i / group * group * Lanes + lane * group + i % group; }
};

// A thread's share in copying an operand's steps, of which element (line, k) comes to [k][line].
template <class Tile, int Lines, Major major, class T>
struct OperandCopy {
  static constexpr int together = major == Major::lines ? 16 / sizeof(T) : 1;  // elements that are neighbours in both
  static constexpr int across = major == Major::lines ? Lines / together : 8;  // threads for what is contiguous
  static constexpr int apart = Tile::threads / across, sides = (major == Major::lines ? Tile::depth : Lines) / apart;
  static constexpr int halves = major == Major::lines ? 1 : Tile::depth / across, width = StepOf<Tile, T, Lines>::width;
  static_assert(Tile::threads % across == 0 && Lines % 32 == 0 && sides > 0 && halves > 0);

  const T* at;        // this thread's first element of the next step,
  SharedPlace<T> to;  // and its place
  int64_t line_stride, depth_stride;
  int lines;

  __device__ __forceinline__ OperandCopy(const T* data, int64_t line_stride, int64_t depth_stride, int64_t lines_left,
                                         const StepOf<Tile, T, Lines>& step)
      : at(data + first_line(threadIdx.x) * line_stride + first_depth(threadIdx.x) * depth_stride),
        to(&step.at[first_depth(threadIdx.x)][first_line(threadIdx.x)]),
        line_stride(line_stride),
        depth_stride(depth_stride),
        lines(static_cast<int>(smaller<int64_t>(lines_left, Lines))) {}
  static __device__ __forceinline__ int first_line(int thread) {
    return major == Major::lines ? thread % across * together : thread / across;
  }
  static __device__ __forceinline__ int first_depth(int thread) {
    return major == Major::lines ? thread / across : thread % across;
  }
  // Whether all lines exist, and lie as begin_whole() wants them; `data` as the constructor had it.
  __device__ __forceinline__ bool is_whole(const T* data) const {
    const bool contiguous = major == Major::lines
                                ? line_stride == 1 && depth_stride % together == 0 && are_aligned(data)
                                : depth_stride == 1;
    return lines == Lines && contiguous;
  }
  // Begins to copy the next step.
  __device__ __forceinline__ void begin_whole() {
    constexpr int side = sizeof(T) * apart * (major == Major::lines ? width : 1), half = sizeof(T) * across;
    const T* from = at;
#pragma unroll
    for (int q = 0; q < sides; q++) {
      T* const there = to.pointer() + q * side / sizeof(T);
      begin_copy<sizeof(T) * together>(there, from);
      if constexpr (halves == 2) begin_copy<sizeof(T), half * width, half>(there, from);
      from += apart * (major == Major::lines ? depth_stride : line_stride);
    }
    at = major == Major::lines ? from : at + Tile::depth;
  }
  // The same of any operand, of which `left` places along K exist; `padding` beyond. Lines that do not exist may hold
  // anything: what is computed of them is not written.
  __device__ __forceinline__ void begin_part(int left, T padding) {
    const int thread = thread_anew(), own_lines = lines - first_line(thread), own_left = left - first_depth(thread);
#pragma unroll 1
    for (int q = 0; q < sides; q++) {
#pragma unroll
      for (int e = 0; e < halves * together; e++) {
        const int k = major == Major::lines ? q * apart : e * across, l = major == Major::lines ? e : q * apart;
        if (l >= own_lines) continue;
        T* const there = to.pointer() + k * width + l;
        if (k < own_left)
          begin_copy<sizeof(T)>(there, at + l * line_stride + k * depth_stride);
        else
          *there = padding;
      }
    }
    at += Tile::depth * depth_stride;
  }
};

// How much of a tile of C exists, and whether all of it does, with groups of columns aligned.
struct TileEdge {
  int rows, columns;
  bool whole;
};

// The sums of the thread's part of the tile over one chunk.
template <class Tile, class T>
struct TileSums {
  using RowLines = ThreadLinesOf<Tile::thread_rows, LANES_DOWN>;
  using ColumnLines = ThreadLinesOf<Tile::thread_columns, LANES_ACROSS>;
  static constexpr int together = ColumnLines::group, groups = ColumnLines::groups;
  T sums[Tile::thread_rows][Tile::thread_columns];

  // The tile's row and column of the thread's i-th.
  static __device__ __forceinline__ int row(int thread, int i) {
    return thread / WARP / Tile::warps_across * Tile::warp_rows + RowLines::line(lane_down(thread), i);
  }
  static __device__ __forceinline__ int column(int thread, int j) {
    return thread / WARP % Tile::warps_across * Tile::warp_columns + ColumnLines::line(lane_across(thread), j);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; i++)
#pragma unroll
      for (int j = 0; j < Tile::thread_columns; j++) sums[i][j] = T(0);
  }
  // Where the thread reads a step.
  struct Places {
    SharedPlace<T> a, b;
    __device__ __forceinline__ explicit Places(const Step<Tile, T>& step)
        : Places(&step.a.at[0][0], &step.b.at[0][0]) {}
    __device__ __forceinline__ Places(const T* a, const T* b)
        : a(a + row(threadIdx.x, 0)), b(b + column(threadIdx.x, 0)) {}
  };
  __device__ __forceinline__ void multiply(const Places& places) {
    const T *a = places.a.pointer(), *b = places.b.pointer();
    constexpr int a_width = StepOf<Tile, T, Tile::rows>::width, b_width = StepOf<Tile, T, Tile::columns>::width;
    T x[2][Tile::thread_rows], y[2][Tile::thread_columns];  // the next k is read while one is multiplied
    read<RowLines>(x[0], a);
    read<ColumnLines>(y[0], b);
#pragma unroll
    for (int k = 0; k < Tile::depth; k++) {
      if (k + 1 < Tile::depth) {
        read<RowLines>(x[(k + 1) % 2], a + (k + 1) * a_width);
        read<ColumnLines>(y[(k + 1) % 2], b + (k + 1) * b_width);
      }
#pragma unroll
      for (int i = 0; i < Tile::thread_rows; i++)
#pragma unroll
        for (int j = 0; j < Tile::thread_columns; j++) sums[i][j] = fma(x[k % 2][i], y[k % 2][j], sums[i][j]);
    }
  }
  // Adds those of a later chunk.
  __device__ __forceinline__ void add_sums(const TileSums& later) {
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; i++)
#pragma unroll
      for (int j = 0; j < Tile::thread_columns; j++) sums[i][j] = add(sums[i][j], later.sums[i][j]);
  }
  // Adds the sums to what C holds. `whole`: all of the tile exists, and groups of columns are aligned.
  __device__ __forceinline__ void add_to(const T* C, int64_t c_row, const TileEdge& edge) {
    if (edge.whole)
      each_group(C, c_row, [&](int i, int j, const T* at) {
        const Group old = load_group(at, together, true);
#pragma unroll
        for (int e = 0; e < together; e++) sums[i][j + e] = add(old.values[e], sums[i][j + e]);
      });
    else
      each(C, c_row, edge, [&](int i, int j, const T* at) { sums[i][j] = add(*at, sums[i][j]); });
  }
  __device__ __forceinline__ void store(T* C, int64_t c_row, const TileEdge& edge) const {
    if (edge.whole)
      each_group(C, c_row, [&](int i, int j, T* at) {
        Group y;
#pragma unroll
        for (int e = 0; e < together; e++) y.values[e] = sums[i][j + e];
        store_group(at, y, together, true);
      });
    else
      each(C, c_row, edge, [&](int i, int j, T* at) { *at = sums[i][j]; });
  }
  // `bias`: of the tile's columns.
  __device__ __forceinline__ void add_bias(const T* bias, const TileEdge& edge) {
    const int first = column(thread_anew(), 0);
    bias += first;
#pragma unroll
    for (int j = 0; j < Tile::thread_columns; j++) {
      const int line = ColumnLines::line(0, j);
      const T term = first + line < edge.columns ? bias[line] : T(0);
#pragma unroll
      for (int i = 0; i < Tile::thread_rows; i++) sums[i][j] = add(sums[i][j], term);
    }
  }
  __device__ __forceinline__ void apply_relu() {
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; i++)
#pragma unroll
      for (int j = 0; j < Tile::thread_columns; j++) sums[i][j] = Relu::value(sums[i][j]);
  }

 private:
  using Group = ElementGroup<T>;
  static_assert(Group::size == together);
  // Calls f(i, j, where it lies in C) for the first of every group of columns; or for all that exist.
  template <class C, class F>
  static __device__ __forceinline__ void each_group(C* c, int64_t c_row, F&& f) {
    const int thread = thread_anew();
    c += row(thread, 0) * c_row + column(thread, 0);
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; i++) {
      if (i > 0) c += (RowLines::line(0, i) - RowLines::line(0, i - 1)) * c_row;
      keep_pointer(c);
#pragma unroll
      for (int j = 0; j < Tile::thread_columns; j += together) f(i, j, c + ColumnLines::line(0, j));
    }
  }
  template <class C, class F>
  static __device__ __forceinline__ void each(C* c, int64_t c_row, const TileEdge& edge, F&& f) {
    const int thread = thread_anew(), rows = edge.rows - row(thread, 0), columns = edge.columns - column(thread, 0);
    each_group(c, c_row, [&](int i, int j, C* at) {
#pragma unroll
      for (int e = 0; e < together; e++)
        if (RowLines::line(0, i) < rows && ColumnLines::line(0, j + e) < columns) f(i, j + e, at + e);
    });
  }
  template <class LinesOf, int Count>
  static __device__ __forceinline__ void read(T (&values)[Count], const T* line) {
#pragma unroll
    for (int g = 0; g < LinesOf::groups; g++) {
      const auto part =
          *reinterpret_cast<const Neighbours<T, LinesOf::group>*>(line + LinesOf::line(0, g * LinesOf::group));
#pragma unroll
      for (int e = 0; e < LinesOf::group; e++) values[g * LinesOf::group + e] = part.values[e];
    }
  }
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
