#include "activation.h"

#include "../numerics/activations.h"
#include "dtypes.h"
#include "parallel.h"
#include "streaming.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

constexpr int64_t ELEMENTS_PER_TASK = 16384;

// y[i] = f(i, left) for the Vector of elements from i on, of which `left` exist.
template <class S, class F>
void each_vector(int64_t n, S* y, F&& f) {
  constexpr int64_t width = ComputeV<S>::size;
  const bool streamed = is_streamed<S>(n);
  cpu::parallel_for((n + width - 1) / width, ELEMENTS_PER_TASK / width, [=](int64_t first, int64_t last) {
    const Stream<S> stream(y, streamed);
    const int64_t end = last * width < n ? last * width : n;
    int64_t i = first * width;
    for (; i + width <= end; i += width) stream.put(y + i, f(i, width), width);
    if (i < end) stream.put(y + i, f(i, end - i), end - i);
  });
}

}  // namespace

template <class S>
void activation(Activation kind, int64_t n, const S* x, S* y) {
  using T = compute_t<S>;
  with_activation(kind, [=](auto act) {
    each_vector(n, y, [=](int64_t i, int64_t left) { return act.value(load(x + i, left, T(0))); });
  });
}

template <class S>
void activation_gradient(Activation kind, int64_t n, const S* grad, const S* saved, S* dx) {
  using T = compute_t<S>;
  with_activation(kind, [=](auto act) {
    each_vector(n, dx, [=](int64_t i, int64_t left) {
      return act.gradient(load(grad + i, left, T(0)), load(saved + i, left, T(0)));
    });
  });
}

#define INSTANTIATE(S)                                            \
  template void activation<S>(Activation, int64_t, const S*, S*); \
  template void activation_gradient<S>(Activation, int64_t, const S*, const S*, S*);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
