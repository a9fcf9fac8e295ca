#include "linear.h"

#include "../numerics/activations.h"
#include "dtypes.h"
#include "parallel.h"
#include "rows.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

// Vectors of columns [begin, end): each column's dz is written and summed on the way down.
template <class Act, class S>
void gradient_columns(const LinearGradient<S>& p, int64_t begin, int64_t end) {
  using T = compute_t<S>;
  using V = Vector<T>;
  for (int64_t j = begin * V::size; j < p.columns && j < end * V::size; j += V::size) {
    int64_t left = p.columns - j;
    auto term = [&](int64_t i) {
      const S* g = p.grad + i * p.grad_row + j * p.grad_column;
      V dz = p.grad_column ? load(g, left, T(0)) : constant<V>(widen(*g));
      if (p.saved) dz = Act::gradient(dz, load(p.saved + i * p.columns + j, left, T(0)));
      if (p.dz) store(p.dz + i * p.columns + j, dz, left);
      return dz;
    };
    if (p.dbias)
      store(p.dbias + j, sum_columns<T>(p.rows, term), left);
    else
      for (int64_t i = 0; i < p.rows; i++) term(i);
  }
}

}  // namespace

template <class S>
void linear_gradient(const LinearGradient<S>& p) {
  constexpr int width = ComputeV<S>::size;
  constexpr int64_t elements_per_task = 16384;
  int64_t vectors = (p.columns + width - 1) / width;
  int64_t grain = elements_per_task / (width * (p.rows ? p.rows : 1)) + 1;
  with_activation(p.activation, [&](auto act) {
    cpu::parallel_for(vectors, grain,
                      [&](int64_t begin, int64_t end) { gradient_columns<decltype(act)>(p, begin, end); });
  });
}

#define INSTANTIATE(S) template void linear_gradient<S>(const LinearGradient<S>&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
