#include "cross_entropy.h"

#include "dtypes.h"
#include "parallel.h"
#include "softmax_rows.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

constexpr int64_t ELEMENTS_PER_TASK = 8192;

// What all rows have in common: the gradient's scale and the sum of the class weights.
template <class T>
struct Shared {
  T divisor, scale, weight_sum;
};

template <class S>
Shared<compute_t<S>> shared(const ClassificationLoss<S>& p) {
  using T = compute_t<S>;
  Shared<T> r{static_cast<T>(p.indices ? p.counted_rows : p.outer * p.inner), T(1), T(0)};
  if (p.grad && p.reduction != Reduction::none) r.scale = widen(*p.grad);
  if (p.weight && p.indices && p.reduction == Reduction::mean)
    r.divisor = sum_parallel<T>(p.outer * p.inner, 8, [&](int64_t begin, int64_t length) {
      return sum_segment<T>(length, [&](int64_t i, int64_t left) {
        T w[Vector<T>::size] = {};
        for (int64_t l = 0; l < Vector<T>::size && l < left; l++) {
          int64_t t = p.indices[begin + i + l];
          if (t != p.ignore_index) w[l] = widen(p.weight[t]);
        }
        return load(w);
      });
    });
  if (p.reduction == Reduction::mean) r.scale = div(r.scale, r.divisor);
  if (p.weight && p.smoothed)
    r.weight_sum = sum_row<T>(p.classes, [&](int64_t c, int64_t left) { return load(p.weight + c, left, T(0)); });
  return r;
}

// A group of rows: x and dx point to its first element, `first` is the number of its first row, and `stage` an array
// for it.
template <class S, class Rows>
struct Group {
  using T = compute_t<S>;
  using V = Vector<T>;
  using Value = typename Rows::Value;
  // Rows side by side lie far apart: they are gathered once. Narrow ones are widened once. Else dx itself holds e.
  static constexpr bool staged = Rows::side_by_side || sizeof(S) != sizeof(T);

  const ClassificationLoss<S>& p;
  const Shared<T>& all;
  Rows rows;
  int64_t first;
  const S *x, *probabilities;
  S *dx, *dprobabilities;
  T* stage;
  Value max, inverse, log_sum;

  INLINE_HD V shifted(int64_t c, int64_t left) const {
    return sub(load(x + rows.at(c), left, -infinity()), Rows::spread(max));
  }
  INLINE_HD V minus_log(int64_t c, int64_t left) const { return neg(sub(shifted(c, left), Rows::spread(log_sum))); }
  INLINE_HD V probability(int64_t c, int64_t left) const {
    return mul(load(stage + rows.stage_at(c), left, T(0)), Rows::spread(inverse));
  }
  static T infinity() { return static_cast<T>(POSITIVE_INFINITY); }

  // After it probability() and minus_log() can be called; probability() only where a gradient is wanted.
  INLINE_HD void softmax() {
    if constexpr (staged) {
      finish(exponentials<true, true>(rows, x, stage));
    } else {
      stage = dx;
      finish(dx ? exponentials<false, true>(rows, x, dx) : exponentials<false, false>(rows, x, dx));
    }
  }
  INLINE_HD void finish(Exponentials<Value> found) {
    max = found.max;
    inverse = div(Value(T(1)), found.sum);
    if (p.loss || dprobabilities) log_sum = log(found.sum);
  }

  INLINE_HD T row_scale(int64_t lane) const {
    return p.reduction == Reduction::none && p.grad ? widen(p.grad[first + lane]) : all.scale;
  }

  INLINE_HD void clear(int64_t lane) const {
    for (int64_t c = 0; c < p.classes; c++) dx[rows.at(c) + lane] = narrow<S>(T(0));
  }

  // dx = slope(p, c, left) times the row's scale.
  template <class Slope>
  INLINE_HD void write_gradient(Value scale, Slope&& slope) const {
    const V s = Rows::spread(scale);
    rows.each([&](int64_t c, int64_t left) {
      rows.template prefetch<1>(dx + rows.at(c));
      store(dx + rows.at(c), mul(slope(probability(c, left), c, left), s), left);
    });
  }

  void indices(T* losses);
  void distributions(T* losses);
};

// Class indices: q is `spread` everywhere and more at the target, times the weights.
template <class S, class Rows>
void Group<S, Rows>::indices(T* losses) {
  T w[Rows::lanes] = {}, total[Rows::lanes] = {}, scale[Rows::lanes] = {};
  const int64_t* target = p.indices + first;
  int64_t ignored = 0;
  for (int64_t l = 0; l < rows.rows(); l++) {
    losses[l] = T(0);
    if (target[l] == p.ignore_index) {
      ignored++;
      continue;
    }
    w[l] = p.weight ? widen(p.weight[target[l]]) : T(1);
    total[l] = p.smoothed && p.weight ? fma(p.kept, w[l], mul(p.spread, all.weight_sum)) : w[l];
    scale[l] = row_scale(l);
  }
  if (ignored < rows.rows()) {
    softmax();
    if (p.loss) {
      Value smooth = Value(T(0));
      if (p.smoothed)
        smooth = rows.sum([&](int64_t c, int64_t left) {
          V v = minus_log(c, left);
          if (p.weight) v = mul(Rows::of_column(p.weight, c, left), v);
          return Rows::first(v, left);
        });
      for (int64_t l = 0; l < rows.rows(); l++) {
        if (target[l] == p.ignore_index) continue;
        T shifted = sub(widen(x[rows.at(target[l]) + l]), Rows::lane(max, l));
        T value = mul(w[l], neg(sub(shifted, Rows::lane(log_sum, l))));
        losses[l] = p.smoothed ? fma(p.kept, value, mul(p.spread, Rows::lane(smooth, l))) : value;
      }
    }
    if (dx) {
      const V sum_q = Rows::spread(Rows::value(total)), spread = constant<V>(p.spread);
      const Value s = Rows::value(scale);
      if (p.smoothed && p.weight)
        write_gradient(s, [&](V pr, int64_t c, int64_t left) {
          return fma(pr, sum_q, neg(mul(spread, Rows::of_column(p.weight, c, left))));
        });
      else if (p.smoothed)
        write_gradient(s, [&](V pr, int64_t, int64_t) { return sub(pr, spread); });
      else if (p.weight)
        write_gradient(s, [&](V pr, int64_t, int64_t) { return mul(pr, sum_q); });
      else
        write_gradient(s, [](V pr, int64_t, int64_t) { return pr; });
      for (int64_t l = 0; l < rows.rows(); l++) {
        if (target[l] == p.ignore_index) continue;
        int64_t at = rows.at(target[l]) + l;
        T e = exp_nonpositive(sub(widen(x[at]), Rows::lane(max, l)));
        T q = !p.smoothed ? w[l] : p.weight ? fma(p.kept, w[l], mul(p.spread, w[l])) : p.on_target;
        dx[at] = narrow<S>(mul(fma(mul(e, Rows::lane(inverse, l)), total[l], neg(q)), scale[l]));
      }
    }
  }
  if (dx && ignored)
    for (int64_t l = 0; l < rows.rows(); l++)
      if (target[l] == p.ignore_index) clear(l);
}

// Class probabilities.
template <class S, class Rows>
void Group<S, Rows>::distributions(T* losses) {
  softmax();
  auto q = [&](int64_t c, int64_t left) {
    V t = load(probabilities + rows.at(c), left, T(0));
    if (p.smoothed) t = fma(t, constant<V>(p.kept), constant<V>(p.spread));
    return p.weight ? mul(Rows::of_column(p.weight, c, left), t) : t;
  };
  if (p.loss) {
    Value value =
        rows.sum([&](int64_t c, int64_t left) { return Rows::first(mul(q(c, left), minus_log(c, left)), left); });
    for (int64_t l = 0; l < rows.rows(); l++) losses[l] = Rows::lane(value, l);
  }
  if (!dx && !dprobabilities) return;
  T scale[Rows::lanes] = {};
  for (int64_t l = 0; l < rows.rows(); l++) scale[l] = row_scale(l);
  const V s = Rows::spread(Rows::value(scale));
  if (dprobabilities)
    rows.each([&](int64_t c, int64_t left) {
      V slope = minus_log(c, left);
      if (p.weight) slope = mul(slope, Rows::of_column(p.weight, c, left));
      if (p.smoothed) slope = mul(slope, constant<V>(p.kept));
      store(dprobabilities + rows.at(c), mul(slope, s), left);
    });
  if (dx) {
    const V total = Rows::spread(rows.sum([&](int64_t c, int64_t left) { return Rows::first(q(c, left), left); }));
    write_gradient(Rows::value(scale), [&](V pr, int64_t c, int64_t left) { return fma(pr, total, neg(q(c, left))); });
  }
}

// The value of `count` rows from `first`: kept for the sum, or written where every row has its own.
template <class S, class T>
INLINE_HD void put_losses(const ClassificationLoss<S>& p, T* losses, const T* values, int64_t first, int64_t count) {
  for (int64_t l = 0; l < count; l++) {
    if (p.reduction != Reduction::none)
      losses[first + l] = values[l];
    else
      p.loss[first + l] = narrow<S>(values[l]);
  }
}

template <class S>
void reduce(const ClassificationLoss<S>& p, const compute_t<S>* losses, compute_t<S> divisor) {
  using T = compute_t<S>;
  if (!p.loss || p.reduction == Reduction::none) return;
  T sum = sum_parallel<T>(p.outer * p.inner, 8,
                          [&](int64_t begin, int64_t length) { return sum_array<T>(length, losses + begin); });
  *p.loss = narrow<S>(p.reduction == Reduction::mean ? div(sum, divisor) : sum);
}

template <class Rows, class S>
void all_rows(const ClassificationLoss<S>& p) {
  using T = compute_t<S>;
  const Shared<T> all = shared(p);
  Scratch<T> losses(p.loss && p.reduction != Reduction::none ? p.outer * p.inner : 0);
  const int64_t groups = Rows::groups(p.inner), block = p.classes * p.inner;
  const int64_t grain = ELEMENTS_PER_TASK / (Rows::lanes * (p.classes + 1)) + 1;
  cpu::parallel_for(p.outer * groups, grain, [&](int64_t begin, int64_t end) {
    using G = Group<S, Rows>;
    Scratch<T> stage(G::staged ? p.classes * Rows::stage_width : 0);
    T values[Rows::lanes];
    for (int64_t i = begin; i < end; i++) {
      const int64_t o = i / groups, within = i % groups * Rows::lanes, at = o * block + within;
      Rows rows(p.classes, p.inner, within);
      const int64_t first = o * p.inner + within;
      auto from = [&](auto* array) { return array ? array + at : nullptr; };
      G group{p,
              all,
              rows,
              first,
              p.input + o * p.input_outer + within,
              from(p.probabilities),
              from(p.dinput),
              from(p.dprobabilities),
              stage.data(),
              {},
              {},
              {}};
      if (p.indices)
        group.indices(values);
      else
        group.distributions(values);
      if (p.loss) put_losses(p, losses.data(), values, first, rows.rows());
    }
  });
  reduce(p, losses.data(), all.divisor);
}

}  // namespace

template <class S>
void cross_entropy(const ClassificationLoss<S>& p) {
  if (p.inner == 1)
    all_rows<OneRow<compute_t<S>>>(p);
  else
    all_rows<RowsSideBySide<compute_t<S>>>(p);
}

template <class S>
void nll_loss(const ClassificationLoss<S>& p) {
  using T = compute_t<S>;
  const Shared<T> all = shared(p);
  Scratch<T> losses(p.loss && p.reduction != Reduction::none ? p.outer * p.inner : 0);
  cpu::parallel_for(p.outer * p.inner, ELEMENTS_PER_TASK, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const int64_t t = p.indices[row], o = row / p.inner, within = row % p.inner;
      const bool counts = t != p.ignore_index;
      const T w = counts && p.weight ? widen(p.weight[t]) : T(1);
      if (p.loss) {
        T value = counts ? mul(w, neg(widen(p.input[o * p.input_outer + t * p.inner + within]))) : T(0);
        put_losses(p, losses.data(), &value, row, 1);
      }
      if (p.dinput && counts) {
        T s = p.reduction == Reduction::none && p.grad ? widen(p.grad[row]) : all.scale;
        p.dinput[(o * p.classes + t) * p.inner + within] = narrow<S>(neg(mul(w, s)));
      }
    }
  });
  reduce(p, losses.data(), all.divisor);
}

#define INSTANTIATE(S)                                          \
  template void cross_entropy<S>(const ClassificationLoss<S>&); \
  template void nll_loss<S>(const ClassificationLoss<S>&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
