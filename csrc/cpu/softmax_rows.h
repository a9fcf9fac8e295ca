// The first half of a softmax for a group of rows (row_groups.h): the largest element, the exponentials and their sum.
#pragma once

#include "../numerics/functions.h"
#include "row_groups.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class Value>
struct Exponentials {
  Value max, sum;
};

// x points to the group's first element, and x is read twice. With Staged it is read once, into `stage`, an array of
// the group's own: narrow rows are costly to widen, and rows side by side may lie far apart. Else `stage` lies as x
// does, and may be x. In the end it holds the exponentials with Kept, else with Staged the elements themselves.
template <bool Staged, bool Kept, class Rows, class S, class T = compute_t<S>>
INLINE_HD Exponentials<typename Rows::Value> exponentials(const Rows& rows, const S* x, T* stage) {
  using V = Vector<T>;
  using Value = typename Rows::Value;
  const T lowest = -static_cast<T>(POSITIVE_INFINITY);
  auto stage_at = [&](int64_t c) { return stage + (Staged ? rows.stage_at(c) : rows.at(c)); };
  Value max = rows.largest([&](int64_t c, int64_t left) {
    V v = load(x + rows.at(c), left, lowest);
    if constexpr (Staged) {
      rows.template prefetch<0>(x + rows.at(c));
      store(stage_at(c), v, left);
    }
    return v;
  });
  max = add(max, Value(T(0)));
  const V m = Rows::spread(max);
  return {max, rows.sum([&](int64_t c, int64_t left) {
            V v;
            if constexpr (Staged)
              v = load(stage_at(c), left, lowest);
            else
              v = load(x + rows.at(c), left, lowest);
            V e = exp_nonpositive(sub(v, m));
            if constexpr (Kept) store(stage_at(c), e, left);
            return e;
          })};
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
