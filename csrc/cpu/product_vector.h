// Products of few rows with the transpose of a row-major matrix (a linear layer on a small batch): too little work to
// be worth packing, so squares of B are transposed in registers and used at once.
#pragma once

#include "product_block.h"
#include "product_pack.h"
#include "scratch.h"
#include "work.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int FEW_ROWS = 4;

// The same value, of which the compiler knows nothing: it would keep what two groups of columns read alike, and the
// address of every line, in more registers than there are.
template <class T>
INLINE_HD T unknown(T x) {
  asm volatile("" : "+r"(x));
  return x;
}

// As many lines as there are lanes, all there, in fours: `step` from one to the next, `four_steps` from four to four.
// IN_PAIRS: there are two such lines in a four, the others begin a chunk after them.
// So many are more than the processor's own prefetcher follows: what is read some squares later is asked for, past the
// ends of the lines' `length` elements in the next ones, `distance` further.
template <class S, int SQUARES_AHEAD = 3, bool IN_PAIRS = false>
struct FoursOfLines {
  using Element = S;
  const S* first;
  int64_t step, four_steps, length, distance;

  struct Elements {  // an address per four lines, of which the others are some steps away
    static constexpr int fours = (ComputeV<S>::size + 3) / 4;
    const S* four[fours];
    int64_t step, three_steps, ahead;

    INLINE_HD const S* of(int i) const {
      const S* line = four[i / 4];
      if (IN_PAIRS)
        line += i % 4 / 2 * step + i % 2 * PRODUCT_CHUNK;
      else
        line += i % 4 == 3 ? three_steps : i % 4 * step;
      if (SQUARES_AHEAD > 0) __builtin_prefetch(line + ahead);
      return line;
    }
  };
  INLINE_HD Elements from(int64_t k) const {
    constexpr int64_t ahead = SQUARES_AHEAD * ComputeV<S>::size;
    Elements e;
    e.step = step, e.three_steps = unknown(3 * step);
    e.ahead = k + ahead < length ? ahead : ahead - length + distance;
#pragma GCC unroll 4
    for (int f = 0; f < Elements::fours; f++) e.four[f] = unknown(f ? e.four[f - 1] + four_steps : first + k);
    return e;
  }
};
template <class S, int SQUARES_AHEAD = 3>
INLINE_HD FoursOfLines<S, SQUARES_AHEAD> lines_in_turn(const S* first, int64_t step, int64_t length, int64_t distance) {
  return {first, step, 4 * step, length, distance};
}

// One chunk of A's rows, contiguous and in the compute type: where they lie, or a copy.
template <class S, int ROWS>
struct ChunkOfRows {
  using T = compute_t<S>;
  const T* data = copy_;
  int64_t row = PRODUCT_CHUNK;

  INLINE_HD ChunkOfRows(const MatrixView<S>& A, int64_t k, int64_t length) {
    const S* source = A.data + k * A.column;
    if constexpr (std::is_same_v<S, T>)
      if (A.column == 1) {
        data = source, row = A.row;
        return;
      }
    pack_elements(ROWS, length, source, A.row, A.column, copy_, row);
  }

 private:
  T copy_[ROWS * PRODUCT_CHUNK];
};

// Adds to sums[g][i] row i of x times group g of the columns, for `depth` <= lanes elements of K from k on.
template <int GROUPS, class S, int ROWS, class L>
INLINE_HD void multiply_squares(const ChunkOfRows<S, ROWS>& x, const L* lines, int64_t begin, int64_t k, int64_t depth,
                                ComputeV<S> (*sums)[ROWS]) {
#pragma GCC unroll 2
  for (int g = 0; g < GROUPS; g++) {
    const compute_t<S>* rows = unknown(x.data + k);
    Square<compute_t<S>> square;
    load_square(lines[g], begin + k, depth, square);
#pragma GCC unroll 16
    for (int q = 0; q < ComputeV<S>::size; q++)
      if (q < depth)
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) sums[g][i] = fma(ComputeV<S>(rows[i * x.row + q]), square.rows[q], sums[g][i]);
  }
}

// Lines whose distance is near a multiple of 4 KB push each other out of the cache. There a vector's lanes are CHUNKS
// chunks, four or two, of each of some columns: two vectors of them read from fewer such lines.
template <class S>
constexpr bool HAS_FOURS = ComputeV<S>::size >= 4;

// Elements k of x's first chunks side by side, then those of the next; two of them twice. `depth` elements in all.
template <int ROWS, int CHUNKS, class S>
void interleave_chunks(const MatrixView<S>& x, int64_t depth, compute_t<S>* out) {
  for (int i = 0; i < ROWS; i++)
    for (int64_t k = 0; k < depth; k += CHUNKS * PRODUCT_CHUNK)
      for (int64_t q = 0; q < PRODUCT_CHUNK; q++)
        for (int c = 0; c < 4; c++) *out++ = widen(x.data[i * x.row + (k + c % CHUNKS * PRODUCT_CHUNK + q) * x.column]);
}

// Totals over the first `depth` elements of K, which are `x`, interleaved.
template <int ROWS, int CHUNKS, int GROUPS, class S>
void multiply_interleaved(const Block<S>& p, int64_t depth, const compute_t<S>* x, ComputeV<S> (*totals)[ROWS]) {
  using V = ComputeV<S>;
  using T = compute_t<S>;
  constexpr int lanes = V::size, columns = lanes / CHUNKS;  // of one vector
  const int64_t column = p.B.column, row = depth / CHUNKS * 4;
  T out[ROWS][GROUPS * lanes];
  for (int n = 0; n < GROUPS * lanes; n += 2 * columns)
    for (int64_t k = 0; k < depth; k += CHUNKS * PRODUCT_CHUNK) {
      V sums[2][ROWS];
#pragma GCC unroll 2
      for (int g = 0; g < 2; g++)
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) sums[g][i] = constant<V>(T(0));
      for (int64_t q = 0; q < PRODUCT_CHUNK; q += lanes)
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++) {
          const S* first = p.B.data + (n + g * columns) * column + k;
          const FoursOfLines<S, 1, CHUNKS == 2> lines{first, CHUNKS == 2 ? column : PRODUCT_CHUNK, 4 / CHUNKS * column,
                                                      PRODUCT_CHUNK, 2 * columns * column};
          const T* fours = unknown(x + k / CHUNKS * 4 + 4 * q);
          Square<T> square;
          load_square(lines, q, lanes, square);
#pragma GCC unroll 16
          for (int l = 0; l < lanes; l++)
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++)
              sums[g][i] = fma(load_fours(fours + i * row + 4 * l), square.rows[l], sums[g][i]);
        }
      for (int g = 0; g < 2; g++)
        for (int i = 0; i < ROWS; i++) {
          T chunks[lanes];
          store(chunks, sums[g][i]);
          for (int j = 0; j < columns; j++) {
            T& total = out[i][n + g * columns + j];
            for (int c = 0; c < CHUNKS; c++)
              total = k + c == 0 ? chunks[CHUNKS * j] : add(total, chunks[CHUNKS * j + c]);
          }
        }
    }
  for (int g = 0; g < GROUPS; g++)
    for (int i = 0; i < ROWS; i++) totals[g][i] = load(&out[i][g * lanes]);
}

// ROWS rows by so many vectors of columns; B's columns are contiguous lines. The first `interleaved` elements of A's
// rows are x4 too.
template <int ROWS, int GROUPS, class L, class S>
void multiply_few(const Block<S>& p, const L (&lines)[GROUPS], int64_t interleaved, const compute_t<S>* x4) {
  using V = ComputeV<S>;
  constexpr int lanes = V::size;
  V totals[GROUPS][ROWS];
  if constexpr (HAS_FOURS<S> && GROUPS == 2) {
    if (interleaved >= 4 * PRODUCT_CHUNK)
      multiply_interleaved<ROWS, 4, 2>(p, interleaved, x4, totals);
    else if (interleaved)
      multiply_interleaved<ROWS, 2, 2>(p, interleaved, x4, totals);
  }
  for (int64_t begin = interleaved; begin < p.K || begin == 0; begin += PRODUCT_CHUNK) {
    const int64_t length = smaller(p.K - begin, PRODUCT_CHUNK);
    const ChunkOfRows<S, ROWS> x(p.A, begin, length);
    V sums[GROUPS][ROWS];
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++)
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) sums[g][i] = constant<V>(compute_t<S>(0));
    int64_t k = 0;
    for (; k + lanes <= length; k += lanes) multiply_squares<GROUPS>(x, lines, begin, k, lanes, sums);
    if (k < length) multiply_squares<GROUPS>(x, lines, begin, k, length - k, sums);
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++)
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) totals[g][i] = begin == 0 ? sums[g][i] : add(totals[g][i], sums[g][i]);
  }

  compute_t<S> own[SUMS_IN_C<S> ? 1 : ROWS * GROUPS * lanes];
  compute_t<S>* total = own;
  int64_t total_row = GROUPS * lanes;
  if constexpr (SUMS_IN_C<S>) total = p.C, total_row = p.c_row;
#pragma GCC unroll 2
  for (int g = 0; g < GROUPS; g++)
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) store(total + i * total_row + g * lanes, totals[g][i], p.N - g * lanes);
  finish(p, total, total_row);
}

// So many bytes are beyond the caches, and their sets do not matter.
constexpr int64_t FAR_BYTES = 16 << 20;

template <class S, int ROWS>
void multiply_few_rows(const Block<S>& p) {
  constexpr int64_t lanes = ComputeV<S>::size;
  const int64_t line = p.B.column, next = 2 * lanes * line;
  const int64_t bytes = line * static_cast<int64_t>(sizeof(S));
  const bool collide = !stay_in_sets(lanes, bytes) && p.N * bytes <= FAR_BYTES;
  constexpr int64_t four = 4 * PRODUCT_CHUNK, two = 2 * PRODUCT_CHUNK;
  const int64_t in_fours = p.K / four * four, in_twos = p.K / two * two;
  const int64_t interleaved = !HAS_FOURS<S> || !collide || p.N < 2 * lanes ? 0 : in_fours ? in_fours : in_twos;
  Scratch<compute_t<S>> x(ROWS * (in_fours ? interleaved : 2 * interleaved));
  if (in_fours)
    interleave_chunks<ROWS, 4>(p.A, interleaved, x.data());
  else
    interleave_chunks<ROWS, 2>(p.A, interleaved, x.data());
  int64_t n = 0;
  for (; n + 2 * lanes <= p.N; n += 2 * lanes) {
    const Block<S> strip = part(p, 0, ROWS, n, 2 * lanes);
    const S *first = strip.B.data, *second = first + lanes * line;
    auto multiply = [&](auto a, auto b) { multiply_few<ROWS, 2, decltype(a)>(strip, {a, b}, interleaved, x.data()); };
    if (collide)
      multiply(lines_in_turn<S, 0>(first, line, 0, 0), lines_in_turn<S, 0>(second, line, 0, 0));
    else
      multiply(lines_in_turn(first, line, p.K, next), lines_in_turn(second, line, p.K, next));
  }
  const Block<S> strip = part(p, 0, ROWS, n, p.N - n);
  const Lines<S> first{strip.B.data, line, strip.N};
  if (strip.N > lanes)
    multiply_few<ROWS, 2, Lines<S>>(strip, {first, {strip.B.data + lanes * line, line, strip.N - lanes}}, 0, nullptr);
  else if (strip.N)
    multiply_few<ROWS, 1, Lines<S>>(strip, {first}, 0, nullptr);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
