// Rows in groups that SIMD lanes can work on, whichever way they lie in memory: one row whose elements are contiguous,
// or as many rows side by side as a Vector has lanes. A kernel written for a group serves both.
//
//   Value                        what a row has one of: a number, or a lane of a Vector
//   each(f), largest(f), sum(f)  over the columns: f(c, left) is asked for the Vector at column c, of which `left`
//   lanes
//                                exist; sum wants +0 in the others (or first() of the Vector)
//   prefetch<WRITE>(x)           hints at what comes after x in another group
//   at(c), stage_at(c)           where column c lies in the arrays, and in an array of this group alone
#pragma once

#include "rows.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class T>
struct OneRow {
  using V = Vector<T>;
  using Value = T;
  static constexpr bool side_by_side = false;
  static constexpr int lanes = 1, stage_width = 1;
  int64_t columns;

  OneRow(int64_t columns, int64_t, int64_t) : columns(columns) {}
  static int64_t groups(int64_t) { return 1; }
  int64_t rows() const { return 1; }
  int64_t at(int64_t c) const { return c; }
  int64_t stage_at(int64_t c) const { return c; }
  static INLINE_HD T value(const T* lane) { return *lane; }
  static INLINE_HD T lane(T value, int64_t) { return value; }
  static INLINE_HD V spread(T value) { return constant<V>(value); }
  template <class S>
  static INLINE_HD V of_column(const S* x, int64_t c, int64_t left) {
    return load(x + c, left, T(0));
  }
  static INLINE_HD V first(V x, int64_t left) {
    if (__builtin_expect(left >= V::size, 1)) return x;
    T values[V::size];
    store(values, x);
    return load(values, left, T(0));
  }
  template <int WRITE, class S>
  static INLINE_HD void prefetch(const S*) {}
  template <class F>
  INLINE_HD void each(F&& f) const {
    int64_t c = 0;
    for (; c + V::size <= columns; c += V::size) f(c, int64_t(V::size));
    if (c < columns) f(c, columns - c);
  }
  template <class Term>
  INLINE_HD T largest(Term&& term) const {
    constexpr int chains = 4;
    V most[chains];
    for (int j = 0; j < chains; j++) most[j] = constant<V>(-POSITIVE_INFINITY);
    int64_t c = 0;
    for (; c + chains * V::size <= columns; c += chains * V::size)
#pragma GCC unroll 4
      for (int j = 0; j < chains; j++) most[j] = max(most[j], term(c + j * V::size, int64_t(V::size)));
    for (; c < columns; c += V::size) most[0] = max(most[0], term(c, columns - c));
    for (int j = 1; j < chains; j++) most[0] = max(most[0], most[j]);
    T rest[V::size];
    store(rest, most[0]);
#pragma GCC unroll 8
    for (int width = V::size / 2; width >= 1; width /= 2)
#pragma GCC unroll 16
      for (int l = 0; l < width; l++) rest[l] = max(rest[l], rest[l + width]);
    return rest[0];
  }
  template <class Term>
  INLINE_HD T sum(Term&& term) const {
    return sum_row<T>(columns, term);
  }
};

template <class T>
struct RowsSideBySide {
  using V = Vector<T>;
  using Value = V;
  static constexpr bool side_by_side = true;
  static constexpr int lanes = V::size, stage_width = V::size;
  int64_t columns, stride, left;

  // Of `count` rows whose columns are `stride` apart, those from `begin`.
  RowsSideBySide(int64_t columns, int64_t count, int64_t begin)
      : columns(columns), stride(count), left(count - begin < V::size ? count - begin : V::size) {}
  static int64_t groups(int64_t count) { return (count + V::size - 1) / V::size; }
  int64_t rows() const { return left; }
  int64_t at(int64_t c) const { return c * stride; }
  int64_t stage_at(int64_t c) const { return c * V::size; }
  static INLINE_HD V value(const T* lane) { return load(lane); }
  static INLINE_HD T lane(V value, int64_t l) { return value.v[l]; }
  static INLINE_HD V spread(V value) { return value; }
  template <class S>
  static INLINE_HD V of_column(const S* x, int64_t c, int64_t) {
    return constant<V>(widen(x[c]));
  }
  static INLINE_HD V first(V x, int64_t) { return x; }
  // What the group after the next one has there: no processor foresees strides above a page (6.6 ms instead of 7.9 for
  // 21 classes of 262144 rows each).
  template <int WRITE, class S>
  static INLINE_HD void prefetch(const S* x) {
    __builtin_prefetch(x + 2 * V::size, WRITE);
  }
  template <class F>
  INLINE_HD void each(F&& f) const {
    for (int64_t c = 0; c < columns; c++) f(c, left);
  }
  template <class Term>
  INLINE_HD V largest(Term&& term) const {
    V most = constant<V>(-POSITIVE_INFINITY);
    for (int64_t c = 0; c < columns; c++) most = max(most, term(c, left));
    return most;
  }
  template <class Term>
  INLINE_HD V sum(Term&& term) const {
    return sum_columns<T>(columns, [&](int64_t c) { return term(c, left); });
  }
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
