#include "reduce.h"

#include "dtypes.h"
#include "parallel.h"
#include "rows.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

constexpr int64_t ELEMENTS_PER_TASK = 16384;
constexpr int64_t DOT_SEGMENTS_PER_TASK = 8;  // of two arrays, read as fast as memory gives

// y[o, s, j]: the sum of segment s, of `count` segments in all. With one segment that is the result itself.
template <class S, class Y>
void sum_segments(const SliceSum<S>& p, int64_t count, Y* y) {
  using T = compute_t<S>;
  const bool down = p.x_inner == 1 && (p.inner > 1 || p.x_row != 1);
  const int64_t width = down ? Vector<T>::size : 1;
  const int64_t steps = (p.inner + width - 1) / width;
  const int64_t longest = p.rows < SUM_SEGMENT ? p.rows : SUM_SEGMENT;
  cpu::parallel_for(
      p.outer * count * steps, ELEMENTS_PER_TASK / (width * (longest + 1)) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
          const int64_t j = task % steps * width, os = task / steps, o = os / count, row = os % count * SUM_SEGMENT;
          const int64_t length = p.rows - row < SUM_SEGMENT ? p.rows - row : SUM_SEGMENT;
          const S* x = p.x + o * p.x_outer + row * p.x_row + j * p.x_inner;
          if (down) {
            const int64_t left = p.inner - j;
            auto term = [&](int64_t i) { return load(x + i * p.x_row, left, T(0)); };
            store(y + os * p.inner + j, sum_columns_segment<T>(length, term), left);
          } else {
            auto term = [&](int64_t i, int64_t left) { return load(x + i, left, T(0)); };
            y[os * p.inner + j] = narrow<Y>(sum_segment<T>(length, term));
          }
        }
      });
}

template <class S, class Y>
void sum_into(const SliceSum<S>& p, Y* y) {
  using T = compute_t<S>;
  if (p.rows <= SUM_SEGMENT) return sum_segments(p, 1, y);
  const int64_t count = (p.rows + SUM_SEGMENT - 1) / SUM_SEGMENT;
  Scratch<T> segments(p.outer * count * p.inner);
  sum_segments(p, count, segments.data());
  sum_into<T>({p.outer, count, p.inner, segments.data(), count * p.inner, p.inner, 1, nullptr}, y);
}

// The terms of `length` <= 4096 elements, summed.
template <class S>
compute_t<S> dot_segment(const DotProduct<S>& p, int64_t begin, int64_t length) {
  using T = compute_t<S>;
  const S *x = p.x + begin * p.x_stride, *y = p.y + begin * p.y_stride;
  if (p.x_stride == 1 && p.y_stride == 1)
    return sum_segment<T>(
        length, [=](int64_t i, int64_t left) { return mul(load(x + i, left, T(0)), load(y + i, left, T(0))); });
  T terms[SUM_SEGMENT];
  for (int64_t i = 0; i < length; i++) terms[i] = mul(widen(x[i * p.x_stride]), widen(y[i * p.y_stride]));
  return sum_array(length, terms);
}

}  // namespace

template <class S>
void sum_slices(const SliceSum<S>& p) {
  sum_into(p, p.y);
}

template <class S>
void dot_product(const DotProduct<S>& p) {
  cpu::parallel_for(1, 1, [&](int64_t, int64_t) {  // for the IEEE arithmetic it brings to a sum of one segment
    *p.result = narrow<S>(sum_parallel<compute_t<S>>(
        p.count, DOT_SEGMENTS_PER_TASK, [&](int64_t begin, int64_t length) { return dot_segment(p, begin, length); }));
  });
}

#define PYTORCH_EXT_INSTANTIATE(S)                 \
  template void sum_slices<S>(const SliceSum<S>&); \
  template void dot_product<S>(const DotProduct<S>&);
PYTORCH_EXT_EACH_DTYPE(PYTORCH_EXT_INSTANTIATE)
#undef PYTORCH_EXT_INSTANTIATE

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
