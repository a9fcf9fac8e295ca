#include "elementwise_loss.h"

#include "../numerics/losses.h"
#include "dtypes.h"
#include "parallel.h"
#include "rows.h"
#include "streaming.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

// Segments worth a thread of their own, about 5 us of work; a parallel region costs 1 us.
template <class Loss>
constexpr int64_t SEGMENTS_PER_TASK = 2;
template <>
constexpr int64_t SEGMENTS_PER_TASK<MseLoss> = 8;

// 1 where x is outside [0, 1] or NaN, else 0.
template <class V>
V outside_unit_interval(V x) {
  V zero = constant<V>(0), one = constant<V>(1);
  return select(less_equal(zero, x), select(less_equal(x, one), zero, one), one);
}

// Runs body(term) for the elements from `begin` on: term(i, left) is the Vector of values from element begin + i on, of
// which `left` exist, and stores their gradients, scaled, where the arrays say, past the caches where they are
// `streamed`.
template <class Loss, class S, class Body>
INLINE_HD bool evaluate(const ElementwiseLossArrays<S>& arrays, compute_t<S> scale, bool streamed, int64_t begin,
                        Body&& body) {
  using T = compute_t<S>;
  using V = Vector<T>;
  const ElementwiseLossArrays<S> p = arrays;  // a copy that no store can change
  const S* element_grad = p.reduction == Reduction::none ? p.grad : nullptr;
  const Stream<S> dinput(p.dinput, streamed), dtarget(p.dtarget, streamed);
  V s = constant<V>(scale), outside = constant<V>(0), pos_weight = constant<V>(1), weight = constant<V>(1);
  body([&](int64_t index, int64_t left) __attribute__((always_inline)) {
    const int64_t i = begin + index;
    const V x = load(p.input + i, left, T(0)), y = load(p.target + i, left, T(0));
    if (p.pos_weight) pos_weight = load(p.pos_weight + i, left, T(0));
    if (p.weight) weight = load(p.weight + i, left, T(0));
    if (element_grad) s = load(element_grad + i, left, T(0));
    auto weighted = [&](V v) { return p.weight ? mul(v, weight) : v; };
    if (p.dinput) dinput.put(p.dinput + i, mul(weighted(Loss::input_slope(x, y, pos_weight)), s), left);
    if (p.dtarget) dtarget.put(p.dtarget + i, mul(weighted(Loss::target_slope(x, y, pos_weight)), s), left);
    if (!p.value) return constant<V>(0);
    if constexpr (Loss::of_probabilities)
      outside = max(outside, max(outside_unit_interval(x), outside_unit_interval(y)));
    return weighted(Loss::value(x, y, pos_weight));
  });
  for (int l = 0; l < V::size; l++)
    if (outside.v[l] != 0) return false;
  return true;
}

// The sum of `length` <= 4096 terms.
template <class Loss, class T, class Term>
INLINE_HD T sum_values(int64_t length, Term&& term) {
  if constexpr (Loss::zero_at_zero) {
    return sum_segment<T>(length, term);
  } else {  // a long sequence of instructions, which stands here once; sum_segment repeats it for every lane
    T values[SUM_SEGMENT];  // stays in the first-level cache
    for (int64_t i = 0; i < length; i += Vector<T>::size) store(values + i, term(i, length - i), length - i);
    return sum_array<T>(length, values);
  }
}

template <class Loss, class S>
bool evaluate_all(const ElementwiseLossArrays<S>& p) {
  using T = compute_t<S>;
  const bool reduced = p.reduction != Reduction::none;
  T divisor = static_cast<T>(p.count);
  if (p.mean_weight)
    divisor = sum_parallel<T>(p.mean_weight_count, SEGMENTS_PER_TASK<Loss>, [&](int64_t begin, int64_t length) {
      const S* terms = p.mean_weight + begin;
      return sum_segment<T>(length, [=](int64_t i, int64_t left) { return load(terms + i, left, T(0)); });
    });
  T scale = reduced && p.grad ? widen(*p.grad) : T(1);
  if (p.reduction == Reduction::mean) scale = div(scale, divisor);
  const bool streamed = is_streamed<S>(p.count);
  bool valid = true;
  auto note = [&](bool good) {
    if (!good) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
  };
  if (reduced && p.value) {
    T sum = sum_parallel<T>(p.count, SEGMENTS_PER_TASK<Loss>, [&](int64_t begin, int64_t length) {
      T segment;
      note(
          evaluate<Loss>(p, scale, streamed, begin, [&](auto&& term) { segment = sum_values<Loss, T>(length, term); }));
      return segment;
    });
    *p.value = narrow<S>(p.reduction == Reduction::mean ? div(sum, divisor) : sum);
  } else {
    const int64_t segments = (p.count + SUM_SEGMENT - 1) / SUM_SEGMENT;
    cpu::parallel_for(segments, SEGMENTS_PER_TASK<Loss>, [&](int64_t first, int64_t last) {
      const int64_t begin = first * SUM_SEGMENT, end = last * SUM_SEGMENT < p.count ? last * SUM_SEGMENT : p.count;
      note(evaluate<Loss>(p, scale, streamed, begin, [&](auto&& term) {
        const Stream<S> value(p.value, streamed);
        for (int64_t i = begin; i < end; i += Vector<T>::size) {
          const Vector<T> values = term(i - begin, end - i);
          if (p.value) value.put(p.value + i, values, end - i);
        }
      }));
    });
  }
  return valid;
}

}  // namespace

template <class S>
bool elementwise_loss(const ElementwiseLossArrays<S>& p) {
  bool valid = true;
  // A range of one runs here: it brings IEEE arithmetic to the steps that are not divided among the threads.
  cpu::parallel_for(1, 1, [&](int64_t, int64_t) {
    with_elementwise_loss(p.loss, p.pos_weight != nullptr, [&](auto loss) { valid = evaluate_all<decltype(loss)>(p); });
  });
  return valid;
}

#define INSTANTIATE(S) template bool elementwise_loss<S>(const ElementwiseLossArrays<S>&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
