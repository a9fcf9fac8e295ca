#include "activation.h"

#include "../numerics/activations.h"
#include "dtypes.h"
#include "parallel.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

constexpr int64_t ELEMENTS_PER_TASK = 16384;

// Calls f(i, left) for the Vector of elements from i on, of which `left` exist.
template <class S, class F>
void each_vector(int64_t n, F&& f) {
  constexpr int width = ComputeV<S>::size;
  cpu::parallel_for(n, ELEMENTS_PER_TASK, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + width <= end; i += width) f(i, int64_t(width));
    if (i < end) f(i, end - i);
  });
}

}  // namespace

template <class S>
void activation(Activation kind, int64_t n, const S* x, S* y) {
  using T = compute_t<S>;
  with_activation(kind, [=](auto act) {
    each_vector<S>(n, [=](int64_t i, int64_t left) { store(y + i, act.value(load(x + i, left, T(0))), left); });
  });
}

template <class S>
void activation_gradient(Activation kind, int64_t n, const S* grad, const S* saved, S* dx) {
  using T = compute_t<S>;
  with_activation(kind, [=](auto act) {
    each_vector<S>(n, [=](int64_t i, int64_t left) {
      store(dx + i, act.gradient(load(grad + i, left, T(0)), load(saved + i, left, T(0))), left);
    });
  });
}

#define INSTANTIATE(S)                                            \
  template void activation<S>(Activation, int64_t, const S*, S*); \
  template void activation_gradient<S>(Activation, int64_t, const S*, const S*, S*);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
