#include "product.h"

#include "dtypes.h"
#include "parallel.h"
#include "product_block.h"
#include "product_inner.h"
#include "product_pack.h"
#include "product_tile.h"
#include "product_vector.h"
#include "scratch.h"
#include "work.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// How the blocks of one product lie: `down` by `across` of them.
struct Grid {
  int64_t down, across;
};

namespace {

// A chunk of B is packed for this many bytes of columns at a time, a chunk of A for so many bytes of rows: the former
// stays in the last-level cache, the latter in a core's own.
constexpr int64_t PACKED_B_BYTES = 1 << 20, PACKED_A_BYTES = 192 << 10;
// Sums of 16-bit results, which C cannot hold.
constexpr int64_t TOTAL_BYTES = 1 << 20;
// A chunk of B up to this size stays in the nearest cache, so that C can be written row after row.
constexpr int64_t NEAREST_CACHE_BYTES = 32 << 10;
// Packing A pays when this many panels of B read it, packing B when so many tiles do.
constexpr int64_t PANELS_TO_PACK_A = 5, TILES_TO_PACK_B = 3;

// Whether so many lines, `distance` bytes apart, stay in the nearest cache, and their pages in what translates them.
bool stay_near(int64_t lines, int64_t distance) { return distance < SET_DISTANCE && stay_in_sets(lines, distance); }

INLINE_HD bool is_power_of_2(int64_t a) { return (a & (a - 1)) == 0; }

// Memory that a thread keeps from call to call.
class Buffer {
 public:
  ~Buffer() { std::free(data_); }
  template <class T>
  T* get(int64_t count) {
    int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = ceil_div(bytes, 4096) * 4096;
      data_ = std::aligned_alloc(4096, static_cast<size_t>(bytes_));
      if (!data_) std::abort();
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};
thread_local Buffer packed_a, packed_b, kept_totals;

template <class T>
struct PackedView {  // of A or B for the micro-kernel
  const T* data;
  int64_t row, column;
};

// Rows [m, m + rows) of A over one chunk, in the compute type.
template <class S>
PackedView<compute_t<S>> rows_of_a(const Block<S>& p, bool pack, int64_t m, int64_t rows, int64_t k, int64_t length) {
  const S* source = p.A.data + m * p.A.row + k * p.A.column;
  if constexpr (SUMS_IN_C<S>)
    if (!pack) return {source, p.A.row, p.A.column};
  auto* out = packed_a.get<compute_t<S>>(rows * PRODUCT_CHUNK);
  if (p.A.row == 1) {
    pack_lines(length, rows, source, p.A.column, out, rows);
    return {out, 1, rows};
  }
  if (p.A.column == 1)
    pack_lines(rows, length, source, p.A.row, out, int64_t(PRODUCT_CHUNK));
  else
    pack_elements(rows, length, source, p.A.row, p.A.column, out, int64_t(PRODUCT_CHUNK));
  return {out, PRODUCT_CHUNK, 1};
}

// Columns [n, n + columns) of B over one chunk. Columns beyond, up to a whole vector, hold anything.
template <class S>
void pack_panel(const Block<S>& p, int64_t n, int64_t columns, int64_t k, int64_t length, compute_t<S>* out,
                int64_t width) {
  const S* source = p.B.data + k * p.B.row + n * p.B.column;
  if (p.B.column == 1)
    pack_lines(length, columns, source, p.B.row, out, width);
  else if (p.B.row == 1)
    pack_transposed(columns, length, source, p.B.column, out, width);
  else
    pack_elements(length, columns, source, p.B.row, p.B.column, out, width);
}

// A block whose chunk of B, packed, and whose totals fit the buffers.
template <class S>
void multiply_cached(const Block<S>& p, TileShape shape) {
  using T = compute_t<S>;
  constexpr int lanes = Vector<T>::size;
  const int64_t width = shape.width(lanes), panels = ceil_div(p.N, width), tiles = ceil_div(p.M, shape.rows);
  const bool pack_a = panels >= PANELS_TO_PACK_A && p.M > 1;
  const int64_t depth = smaller(p.K, PRODUCT_CHUNK);
  const bool b_in_place =
      SUMS_IN_C<S> && p.B.column == 1 && (tiles < TILES_TO_PACK_B || stay_near(depth, p.B.row * int64_t(sizeof(T))));
  const int64_t row_step = larger(1, PACKED_A_BYTES / int64_t(sizeof(T)) / PRODUCT_CHUNK / shape.rows) * shape.rows;

  T* total;
  int64_t total_row = p.N;
  if constexpr (SUMS_IN_C<S>)
    total = p.C, total_row = p.c_row;
  else
    total = kept_totals.get<T>(p.M * p.N);

  const bool rows_outside = panels * width * depth * int64_t(sizeof(T)) <= NEAREST_CACHE_BYTES;
  T* packed = packed_b.get<T>(panels * width * depth);
  int64_t k = 0;
  do {
    const int64_t length = smaller(p.K - k, PRODUCT_CHUNK);
    const bool last = k + PRODUCT_CHUNK >= p.K;
    auto in_place = [&](int64_t columns) {
      return b_in_place && columns % lanes == 0 && is_power_of_2(columns / lanes);
    };
    for (int64_t n = 0; n < p.N; n += width) {
      const int64_t columns = smaller(p.N - n, width);
      if (!in_place(columns)) pack_panel(p, n, columns, k, length, packed + n * depth, width);
    }
    for (int64_t m = 0; m < p.M; m += row_step) {
      const int64_t end = smaller(p.M, m + row_step);
      const PackedView<T> a = rows_of_a(p, pack_a, m, end - m, k, length);
      auto multiply = [&](int64_t i, int64_t n) {
        const int64_t columns = smaller(p.N - n, width), rows = smaller(end - i, shape.rows);
        const TileShape present{static_cast<int>(rows), log2_vectors_for(columns, lanes)};
        PackedView<T> b{packed + n * depth, width, 1};
        if constexpr (SUMS_IN_C<S>)
          if (in_place(columns)) b = {p.B.data + k * p.B.row + n, p.B.row, 1};
        T* sums = total + i * total_row + n;
        tile_function<T>(present)({length, a.data + (i - m) * a.row, a.row, a.column, b.data, b.row, sums, total_row,
                                   columns, k == 0 && !p.accumulates});
        if (last) finish(part(p, i, rows, n, columns), sums, total_row);
      };
      if (rows_outside)
        for (int64_t i = m; i < end; i += shape.rows)
          for (int64_t n = 0; n < p.N; n += width) multiply(i, n);
      else
        for (int64_t n = 0; n < p.N; n += width)
          for (int64_t i = m; i < end; i += shape.rows) multiply(i, n);
    }
    k += PRODUCT_CHUNK;
  } while (k < p.K);
}

template <class S>
void multiply_tiles(const Block<S>& p) {
  using T = compute_t<S>;
  constexpr int64_t item = sizeof(T);
  const TileShape shape = tile_shape(p.M, p.N, Vector<T>::size);
  const int64_t width = shape.width(Vector<T>::size);
  const int64_t column_step = PACKED_B_BYTES / item / PRODUCT_CHUNK / width * width;
  const int64_t most_rows = larger(1, TOTAL_BYTES / item / smaller(p.N, column_step) / shape.rows) * shape.rows;
  const int64_t row_step = SUMS_IN_C<S> ? p.M : most_rows;
  for (int64_t n = 0; n < p.N; n += column_step)
    for (int64_t m = 0; m < p.M; m += row_step)
      multiply_cached(part(p, m, smaller(p.M - m, row_step), n, smaller(p.N - n, column_step)), shape);
}

template <class S>
void multiply_block(const Block<S>& p) {
  if (p.K == 1 && p.B.column == 1 && !p.accumulates) return outer_product(p);
  if (p.B.row == 1 && p.M <= FEW_ROWS && !p.accumulates) {
    if (p.M == 1 && p.N == 1 && p.A.column == 1 && p.K > PRODUCT_CHUNK) {
      compute_t<S> total = inner_product(p.K, p.A.data, p.B.data);
      if constexpr (SUMS_IN_C<S>) *p.C = total;
      return finish(p, &total, 1);
    }
    switch (p.M) {
      case 1: return multiply_few_rows<S, 1>(p);
      case 2: return multiply_few_rows<S, 2>(p);
      case 3: return multiply_few_rows<S, 3>(p);
      case 4: return multiply_few_rows<S, 4>(p);
    }
  }
  multiply_tiles(p);
}

// The grid of at most `threads` blocks whose largest block is least work, counting an element of A packed as 4
// multiplications and one of B, transposed, as 8.
Grid choose_grid(int64_t M, int64_t N, int64_t column_unit, int64_t threads) {
  Grid best{1, 1};
  int64_t least = INT64_MAX;
  for (int64_t down = 1; down <= smaller(threads, M); down++) {
    int64_t across = larger(1, smaller(threads / down, ceil_div(N, column_unit)));
    int64_t rows = ceil_div(M, down), columns = ceil_div(ceil_div(N, column_unit), across) * column_unit;
    int64_t work = rows * columns + 4 * rows + 8 * columns;
    if (work < least) least = work, best = {down, across};
  }
  return best;
}

template <class S>
Block<S> whole(const Product<S>& p, int64_t b) {
  Block<S> r{p.M,     p.N,    p.K, p.A,          p.B,          p.C + b * p.c_batch, p.preactivation,
             p.c_row, p.bias, 1,   p.activation, p.accumulates};
  if (p.a_offset) r.A.data += p.a_offset[b];
  if (p.b_offset) r.B.data += p.b_offset[b];
  if (r.preactivation) r.preactivation += b * p.c_batch;
  if (p.N == 1 && p.M > 1 && p.c_row == 1) {  // a column computed as a row: its outputs fill the lanes
    r.M = 1, r.N = p.M, r.c_row = p.M, r.bias_step = 0;
    MatrixView<S> a = r.A;
    r.A = {r.B.data, r.B.column, r.B.row};
    r.B = {a.data, a.column, a.row};
  }
  return r;
}

}  // namespace

template <class S>
void product(const Product<S>& p) {
  if (p.M <= 0 || p.N <= 0 || p.batch <= 0) return;
  constexpr int lanes = ComputeV<S>::size;
  const double work = static_cast<double>(p.M) * static_cast<double>(p.N) * static_cast<double>(p.K + 1);
  const double total = work * static_cast<double>(p.batch);
  int64_t threads = 1;
  if (total >= 2 * WORK_PER_THREAD) {
    double most = total / WORK_PER_THREAD;
    threads = cpu::thread_count();
    if (static_cast<double>(threads) > most) threads = static_cast<int64_t>(most);
  }
  Grid grid{1, 1};
  if (p.batch < threads) {
    Block<S> first = whole(p, 0);
    grid = choose_grid(first.M, first.N, 2 * lanes, ceil_div(threads, p.batch));
  }
  const int64_t per_product = grid.down * grid.across, count = p.batch * per_product;
  cpu::parallel_for(count, ceil_div(count, threads), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      Block<S> block = whole(p, t / per_product);
      const int64_t i = t % per_product / grid.across, j = t % grid.across;
      const int64_t units = ceil_div(block.N, 2 * lanes);
      const int64_t m = block.M * i / grid.down, n = units * j / grid.across * 2 * lanes;
      const int64_t m_end = block.M * (i + 1) / grid.down;
      const int64_t n_end = smaller(block.N, units * (j + 1) / grid.across * 2 * lanes);
      multiply_block(part(block, m, m_end - m, n, n_end - n));
    }
  });
}

#define PYTORCH_EXT_INSTANTIATE(S) template void product<S>(const Product<S>&);
PYTORCH_EXT_EACH_DTYPE(PYTORCH_EXT_INSTANTIATE)
#undef PYTORCH_EXT_INSTANTIATE

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
