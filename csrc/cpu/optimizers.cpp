#include "optimizers.h"

#include "dtypes.h"
#include "parallel.h"
#include "rows.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

constexpr int64_t ELEMENTS_PER_TASK = 16384;

// Runs body(tensor, begin, end) over every element of every tensor, cut at multiples of `unit` elements of a tensor.
template <class Tensor, class Body>
void for_each_range(const Tensor* tensors, int64_t count, int64_t unit, Body&& body) {
  int64_t units = 0;
  for (int64_t t = 0; t < count; t++) units += (tensors[t].count + unit - 1) / unit;
  cpu::parallel_for(units, ELEMENTS_PER_TASK / unit, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // of this tensor, in units
    for (int64_t t = 0; t < count && first < end; t++) {
      int64_t length = (tensors[t].count + unit - 1) / unit;
      int64_t from = begin > first ? begin - first : 0, to = end - first < length ? end - first : length;
      int64_t last = to * unit < tensors[t].count ? to * unit : tensors[t].count;
      if (from < to) body(t, from * unit, last);
      first += length;
    }
  });
}

}  // namespace

template <class S>
void sgd_step(const SgdRule<compute_t<S>>& rule, const SgdTensor<S>* tensors, int64_t count) {
  using V = ComputeV<S>;
  for_each_range(tensors, count, 1024, [&](int64_t t, int64_t begin, int64_t end) {
    const SgdTensor<S> x = tensors[t];
    for (int64_t i = begin; i < end; i += V::size) {
      const int64_t left = end - i;
      V param = load(x.param + i, left, 0), grad = load(x.grad + i, left, 0), buffer;
      if (x.buffer && !x.first) buffer = load(x.buffer + i, left, 0);
      sgd_update(rule, param, grad, x.buffer ? &buffer : nullptr, x.first);
      store(x.param + i, param, left);
      if (x.buffer) store(x.buffer + i, buffer, left);
    }
  });
}

template <class S>
void adam_step(const AdamRule<compute_t<S>>& rule, const AdamTensor<S>* tensors, int64_t count) {
  using V = ComputeV<S>;
  for_each_range(tensors, count, 1024, [&](int64_t t, int64_t begin, int64_t end) {
    const AdamTensor<S> x = tensors[t];
    for (int64_t i = begin; i < end; i += V::size) {
      const int64_t left = end - i;
      V param = load(x.param + i, left, 0), grad = load(x.grad + i, left, 0);
      V m = load(x.exp_avg + i, left, 0), v = load(x.exp_avg_sq + i, left, 0), v_max;
      if (x.max_exp_avg_sq) v_max = load(x.max_exp_avg_sq + i, left, 0);
      adam_update(rule, x.negative_step_size, x.scale, param, grad, m, v, x.max_exp_avg_sq ? &v_max : nullptr);
      store(x.param + i, param, left);
      store(x.exp_avg + i, m, left);
      store(x.exp_avg_sq + i, v, left);
      if (x.max_exp_avg_sq) store(x.max_exp_avg_sq + i, v_max, left);
    }
  });
}

// Norm of the per-tensor norms; each is the root of a sum, by the sum rule, of squares.
template <class S>
void gradient_norm(const GradTensor<S>* tensors, int64_t count, compute_t<S>* norm) {
  using T = compute_t<S>;
  int64_t total = 0;
  for (int64_t t = 0; t < count; t++) total += (tensors[t].count + SUM_SEGMENT - 1) / SUM_SEGMENT;
  Scratch<T> segments(total), norms(count);
  Scratch<int64_t> first(count);
  for (int64_t t = 0, at = 0; t < count; t++) {
    first[t] = at;
    at += (tensors[t].count + SUM_SEGMENT - 1) / SUM_SEGMENT;
  }
  for_each_range(tensors, count, SUM_SEGMENT, [&](int64_t t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += SUM_SEGMENT) {
      const S* x = tensors[t].grad + i;
      segments[first[t] + i / SUM_SEGMENT] =
          sum_segment<T>(end - i < SUM_SEGMENT ? end - i : SUM_SEGMENT, [&](int64_t j, int64_t left) {
            auto g = load(x + j, left, T(0));
            return mul(g, g);
          });
    }
  });
  cpu::parallel_for(1, 1, [&](int64_t, int64_t) {  // in one thread, with IEEE arithmetic as in every task
    for (int64_t t = 0; t < count; t++)
      norms[t] = sqrt(sum_array<T>((tensors[t].count + SUM_SEGMENT - 1) / SUM_SEGMENT, segments.data() + first[t]));
    *norm = sqrt(sum_row<T>(count, [&](int64_t i, int64_t left) {
      auto part = load(norms.data() + i, left, T(0));
      return mul(part, part);
    }));
  });
}

// g *= min(max_norm / (norm + 1e-6), 1), always: a NaN norm makes every gradient NaN, as in torch.
template <class S>
void clip_gradients(const GradTensor<S>* tensors, int64_t count, compute_t<S> max_norm, const compute_t<S>* norm) {
  using T = compute_t<S>;
  using V = Vector<T>;
  for_each_range(tensors, count, 1024, [&](int64_t t, int64_t begin, int64_t end) {
    const T factor = min(T(1), div(max_norm, add(*norm, T(1e-6))));
    S* grad = tensors[t].grad;
    for (int64_t i = begin; i < end; i += V::size)
      store(grad + i, mul(load(grad + i, end - i, T(0)), constant<V>(factor)), end - i);
  });
}

#define INSTANTIATE(S)                                                                      \
  template void sgd_step<S>(const SgdRule<compute_t<S>>&, const SgdTensor<S>*, int64_t);    \
  template void adam_step<S>(const AdamRule<compute_t<S>>&, const AdamTensor<S>*, int64_t); \
  template void gradient_norm<S>(const GradTensor<S>*, int64_t, compute_t<S>*);             \
  template void clip_gradients<S>(const GradTensor<S>*, int64_t, compute_t<S>, const compute_t<S>*);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
