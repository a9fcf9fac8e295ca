#include "softmax.h"

#include "dtypes.h"
#include "parallel.h"
#include "softmax_rows.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

constexpr int64_t ELEMENTS_PER_TASK = 8192;
// A tile of rows side by side is this wide at most, so that memory is read in long pieces, and wider than a Vector only
// up to so many elements, so that it stays in a core's own cache.
constexpr int64_t WIDEST_TILE = 1024, TILE_ELEMENTS = 65536;

// Value and derivative of the two functions. From a row's largest element m and the sum of its exponentials e comes one
// number per row, r, then the result y; from the sum of term(g, y) over a row, with g = dL/dy, the gradient.
struct Probability {  // y = e / sum; y (g - sum of y g)
  static constexpr bool of_exponentials = true;
  template <class V>
  static INLINE_HD V of_sum(V sum) {
    return div(constant<V>(1), sum);
  }
  template <class V>
  static INLINE_HD V value(V e, V, V r) {
    return mul(e, r);
  }
  template <class V>
  static INLINE_HD V term(V g, V y) {
    return mul(y, g);
  }
  template <class V>
  static INLINE_HD V gradient(V g, V y, V total) {
    return mul(y, sub(g, total));
  }
};

struct LogProbability {  // y = (x - m) - log(sum); g - e^y (sum of g)
  static constexpr bool of_exponentials = false;
  template <class V>
  static INLINE_HD V of_sum(V sum) {
    return log(sum);
  }
  template <class V>
  static INLINE_HD V value(V x, V m, V r) {
    return sub(sub(x, m), r);
  }
  template <class V>
  static INLINE_HD V term(V g, V) {
    return g;
  }
  template <class V>
  static INLINE_HD V gradient(V g, V y, V total) {
    return fma(neg(exp_nonpositive(y)), total, g);
  }
};

// Calls f(begin, end) for ranges of `count` tasks of so many elements each.
template <class F>
void each_range(int64_t count, int64_t elements, F&& f) {
  cpu::parallel_for(count, ELEMENTS_PER_TASK / (elements + 1) + 1, f);
}

// ---- contiguous rows, one by one ----------------------------------------------------------------------------------

template <class Function, class S>
void forward_one_by_one(const Softmax<S>& p) {
  using T = compute_t<S>;
  using V = Vector<T>;
  constexpr bool staged = sizeof(S) != sizeof(T);
  const OneRow<T> row(p.columns, 1, 0);
  each_range(p.outer, p.columns, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(staged ? p.columns : 0);
    for (int64_t o = begin; o < end; o++) {
      const S* x = p.x + o * p.x_outer;
      S* y = p.y + o * p.columns;
      T* stage = scratch.data();
      if constexpr (!staged) stage = y;
      const auto found = exponentials<staged, Function::of_exponentials>(row, x, stage);
      const V m = constant<V>(found.max), r = constant<V>(Function::of_sum(found.sum));
      row.each([&](int64_t c, int64_t left) {
        V v;
        if constexpr (staged || Function::of_exponentials)
          v = load(stage + c, left, T(0));
        else
          v = load(x + c, left, T(0));
        store(y + c, Function::value(v, m, r), left);
      });
    }
  });
}

template <class Function, class S>
void backward_one_by_one(const SoftmaxGradient<S>& p) {
  using T = compute_t<S>;
  using V = Vector<T>;
  const OneRow<T> row(p.columns, 1, 0);
  each_range(p.outer, p.columns, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++) {
      const S *g = p.grad + o * p.columns, *y = p.y + o * p.columns;
      S* dx = p.dx + o * p.columns;
      const V total = constant<V>(row.sum(
          [&](int64_t c, int64_t left) { return Function::term(load(g + c, left, T(0)), load(y + c, left, T(0))); }));
      row.each([&](int64_t c, int64_t left) {
        store(dx + c, Function::gradient(load(g + c, left, T(0)), load(y + c, left, T(0)), total), left);
      });
    }
  });
}

// ---- rows side by side, in tiles ----------------------------------------------------------------------------------

// How rows that lie side by side are cut into tiles of `width` rows. A tile holds groups of as many rows as a Vector
// has lanes, one group after the other, each as RowsSideBySide has its stage.
template <class T>
struct Tiling {
  static constexpr int64_t lanes = Vector<T>::size;
  int64_t columns, inner, width, across;

  Tiling(int64_t columns, int64_t inner) : columns(columns), inner(inner), width(lanes) {
    while (width < inner && width < WIDEST_TILE && width * columns < TILE_ELEMENTS) width *= 2;
    across = (inner + width - 1) / width;
  }
  // Where the first row of tile i begins, in an array with the distance `stride` between two `outer`.
  int64_t begin(int64_t i, int64_t stride) const { return i / across * stride + i % across * width; }
  // Calls f(i, tile, of_rows, count) for every tile i: `count` rows, and scratch for the tile and two numbers per row.
  template <class F>
  void each_tile(int64_t outer, F&& f) const {
    each_range(outer * across, width * columns, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(width * (columns + 2));
      for (int64_t i = begin; i < end; i++) {
        const int64_t left = inner - i % across * width;
        f(i, scratch.data(), scratch.data() + width * columns, left < width ? left : width);
      }
    });
  }
  // Calls f(at, in_tile, l, left) for every Vector: from row l on, of which `left` lanes exist, it lies at `at` from
  // the tile's begin in an array, and at in_tile in the tile.
  template <class F>
  INLINE_HD void each_vector(int64_t count, F&& f) const {
    for (int64_t c = 0; c < columns; c++)
      for (int64_t l = 0; l < count; l += lanes) f(c * inner + l, l * columns + c * lanes, l, count - l);
  }
  // A piece of the column after the next: columns lie too far apart for the processor to foresee them.
  template <class S>
  INLINE_HD void prefetch(const S* x) const {
    __builtin_prefetch(x + 2 * inner);
  }
};

template <class Function, class S>
void forward_side_by_side(const Softmax<S>& p) {
  using T = compute_t<S>;
  const Tiling<T> tiling(p.columns, p.inner);
  const RowsSideBySide<T> group(p.columns, tiling.lanes, 0);
  tiling.each_tile(p.outer, [&](int64_t i, T* tile, T* m, int64_t count) {
    T* r = m + tiling.width;
    const S* x = p.x + tiling.begin(i, p.x_outer);
    S* y = p.y + tiling.begin(i, p.columns * p.inner);
    tiling.each_vector(count, [&](int64_t at, int64_t in_tile, int64_t, int64_t left) {
      tiling.prefetch(x + at);
      store(tile + in_tile, load(x + at, left, T(0)));
    });
    for (int64_t l = 0; l < count; l += tiling.lanes) {
      T* stage = tile + l * p.columns;
      const auto found = exponentials<false, Function::of_exponentials>(group, stage, stage);
      store(m + l, found.max);
      store(r + l, Function::of_sum(found.sum));
    }
    tiling.each_vector(count, [&](int64_t at, int64_t in_tile, int64_t l, int64_t left) {
      store(y + at, Function::value(load(tile + in_tile), load(m + l), load(r + l)), left);
    });
  });
}

template <class Function, class S>
void backward_side_by_side(const SoftmaxGradient<S>& p) {
  using T = compute_t<S>;
  const Tiling<T> tiling(p.columns, p.inner);
  const RowsSideBySide<T> group(p.columns, tiling.lanes, 0);
  tiling.each_tile(p.outer, [&](int64_t i, T* tile, T* total, int64_t count) {
    const int64_t begin = tiling.begin(i, p.columns * p.inner);
    const S *g = p.grad + begin, *y = p.y + begin;
    tiling.each_vector(count, [&](int64_t at, int64_t in_tile, int64_t, int64_t left) {
      tiling.prefetch(g + at);
      tiling.prefetch(y + at);
      store(tile + in_tile, Function::term(load(g + at, left, T(0)), load(y + at, left, T(0))));
    });
    for (int64_t l = 0; l < count; l += tiling.lanes) {
      const T* terms = tile + l * p.columns;
      store(total + l, group.sum([&](int64_t c, int64_t) { return load(terms + group.stage_at(c)); }));
    }
    tiling.each_vector(count, [&](int64_t at, int64_t, int64_t l, int64_t left) {
      const auto gradient = Function::gradient(load(g + at, left, T(0)), load(y + at, left, T(0)), load(total + l));
      store(p.dx + begin + at, gradient, left);
    });
  });
}

template <class Function, class S>
void forward(const Softmax<S>& p) {
  return p.inner == 1 ? forward_one_by_one<Function>(p) : forward_side_by_side<Function>(p);
}
template <class Function, class S>
void backward(const SoftmaxGradient<S>& p) {
  return p.inner == 1 ? backward_one_by_one<Function>(p) : backward_side_by_side<Function>(p);
}

}  // namespace

template <class S>
void softmax(const Softmax<S>& p) {
  return p.logarithm ? forward<LogProbability>(p) : forward<Probability>(p);
}

template <class S>
void softmax_gradient(const SoftmaxGradient<S>& p) {
  return p.logarithm ? backward<LogProbability>(p) : backward<Probability>(p);
}

#define INSTANTIATE(S)                         \
  template void softmax<S>(const Softmax<S>&); \
  template void softmax_gradient<S>(const SoftmaxGradient<S>&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
