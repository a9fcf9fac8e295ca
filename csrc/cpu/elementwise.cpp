#include "elementwise.h"

#include "../numerics/functions.h"
#include "parallel.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

constexpr int64_t GRAIN = 8192;  // elements: some 10 us of work

template <class S, class F>
void apply(int64_t n, const S* x, S* y, F f) {
  cpu::parallel_for(n, GRAIN, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += Vector<S>::size) store(y + i, f(load(x + i, end - i, S(0))), end - i);
  });
}

}  // namespace

template <class S>
void apply_function(Function f, int64_t n, const S* x, S* y) {
  switch (f) {
#define PYTORCH_EXT_CASE(name) \
  case Function::name: return apply(n, x, y, [](Vector<S> lanes) { return name(lanes); });
    PYTORCH_EXT_CASE(exp)
    PYTORCH_EXT_CASE(exp_nonpositive)
    PYTORCH_EXT_CASE(log)
    PYTORCH_EXT_CASE(log1p)
    PYTORCH_EXT_CASE(tanh)
    PYTORCH_EXT_CASE(sigmoid)
    PYTORCH_EXT_CASE(erf)
#undef PYTORCH_EXT_CASE
  }
}

template void apply_function(Function, int64_t, const float*, float*);
template void apply_function(Function, int64_t, const double*, double*);

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
