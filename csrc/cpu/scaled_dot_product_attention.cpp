#include "scaled_dot_product_attention.h"

#include "../numerics/order.h"
#include "../numerics/vector.h"
#include "parallel.h"
#include "scratch.h"
#include "softmax.h"
#include "work.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

template <class T>
void fill(T* x, int64_t count, T value) {
  for (int64_t i = 0; i < count; i++) x[i] = value;
}

// Queries [begin, begin + count) of one head, and the keys that one of them may see.
template <class T>
struct Block {
  const Attention<T>& p;
  int64_t head, begin, count, keys;

  Block(const Attention<T>& p, int64_t head, int64_t begin, int64_t most)
      : p(p), head(head), begin(begin), count(smaller(most, p.queries - begin)), keys(p.keys) {
    if (p.is_causal) keys = smaller(keys, begin + count);
  }

  // The queries times the scale, (count, width) contiguous.
  void scale(T* out) const {
    const MatrixView<T> q = p.q.of(head);
    for (int64_t i = 0; i < count; i++)
      for (int64_t e = 0; e < p.width; e++)
        out[i * p.width + e] = mul(q.data[(begin + i) * q.row + e * q.column], p.scale);
  }

  // Calls f(j, element) along the mask's row for query i; apart where it is contiguous, which a compiler vectorises.
  template <class S, class F>
  INLINE_HD void each_key(const MatrixView<S>& mask, int64_t i, F&& f) const {
    const S* row = mask.data + (begin + i) * mask.row;
    if (mask.column == 1)
      for (int64_t j = 0; j < keys; j++) f(j, row[j]);
    else
      for (int64_t j = 0; j < keys; j++) f(j, row[j * mask.column]);
  }

  // Whether the mask hides the row of scores entirely.
  bool hide(T* scores, int64_t i) const {
    constexpr T nothing = -static_cast<T>(POSITIVE_INFINITY);
    if (p.is_causal)
      for (int64_t j = begin + i + 1; j < keys; j++) scores[j] = nothing;
    if (p.added.first.data) {
      each_key(p.added.of(head), i, [&](int64_t j, T added) { scores[j] = add(scores[j], added); });
    } else if (p.allowed.first.data) {
      each_key(p.allowed.of(head), i, [&](int64_t j, unsigned char allowed) {
        const T term = allowed == 0 ? nothing : T(0);
        scores[j] = add(scores[j], term);
      });
    } else {
      return false;
    }
    for (int64_t j = 0; j < keys; j++)
      if (!(scores[j] == nothing)) return false;
    return true;
  }

  // softmax of the masked scores, (count, keys) contiguous, from the scaled queries.
  void weights(const T* scaled, T* out) const {
    const MatrixView<T> k = p.k.of(head);
    product(Product<T>{count, keys, p.width, {scaled, p.width, 1}, {k.data, k.column, k.row}, out, keys});
    Scratch<bool> hidden(count);
    for (int64_t i = 0; i < count; i++) {
      hidden[i] = hide(out + i * keys, i);
      if (hidden[i]) fill(out + i * keys, keys, T(0));
    }
    softmax(Softmax<T>{count, keys, 1, out, keys, out, false});
    for (int64_t i = 0; i < count; i++)
      if (hidden[i]) fill(out + i * keys, keys, T(0));
  }
};

// Sums over the queries of one head, chunk by chunk: the first makes the total, the others are added to it.
template <class T>
void accumulate(Product<T> p, bool first) {
  p.accumulates = !first;
  product(p);
}

// Runs the body(begin, end) over `count` tasks of so many multiplications each.
template <class F>
void each_task(int64_t count, double multiplications, F&& body) {
  const double tasks = WORK_PER_THREAD / (multiplications + 1);
  cpu::parallel_for(count, tasks < static_cast<double>(count) ? static_cast<int64_t>(tasks) + 1 : count, body);
}

template <class T>
double work(const Attention<T>& p, int64_t queries) {
  return static_cast<double>(queries) * static_cast<double>(p.keys) * static_cast<double>(p.width + p.value_width);
}

}  // namespace

template <class T>
void scaled_dot_product_attention(const AttentionOutput<T>& call) {
  const Attention<T>& p = call.of;
  const int64_t blocks = ceil_div(p.queries, QUERIES_PER_BLOCK);
  const int64_t rows = smaller(p.queries, QUERIES_PER_BLOCK);
  each_task(p.heads * blocks, work(p, rows), [&](int64_t begin, int64_t end) {
    Scratch<T, 8192> scratch(rows * (p.keys + p.width));
    T *weights = scratch.data(), *scaled = weights + rows * p.keys;
    for (int64_t t = begin; t < end; t++) {
      const Block<T> block(p, t / blocks, t % blocks * QUERIES_PER_BLOCK, QUERIES_PER_BLOCK);
      block.scale(scaled);
      block.weights(scaled, weights);
      T* out = call.output + (block.head * p.queries + block.begin) * p.value_width;
      product(Product<T>{
          block.count, p.value_width, block.keys, {weights, block.keys, 1}, p.v.of(block.head), out, p.value_width});
    }
  });
}

template <class T>
void scaled_dot_product_attention_gradient(const AttentionGradient<T>& call) {
  const Attention<T>& p = call.of;
  const int64_t rows = smaller(p.queries, PRODUCT_CHUNK);
  each_task(p.heads, 2.5 * work(p, p.queries), [&](int64_t begin, int64_t end) {
    Scratch<T, 8192> scratch(rows * (2 * p.keys + p.width));
    T *weights = scratch.data(), *dscores = weights + rows * p.keys, *scaled = dscores + rows * p.keys;
    for (int64_t h = begin; h < end; h++) {
      T* dk = call.dk ? call.dk + h * p.keys * p.width : nullptr;
      T* dv = call.dv ? call.dv + h * p.keys * p.value_width : nullptr;
      const MatrixView<T> g = call.grad.of(h), k = p.k.of(h), v = p.v.of(h);
      for (int64_t first = 0; first < p.queries; first += PRODUCT_CHUNK) {  // as the sums over the queries are cut
        const Block<T> block(p, h, first, PRODUCT_CHUNK);
        const int64_t keys = block.keys, count = block.count;
        const MatrixView<T> dout{g.data + first * g.row, g.row, g.column};
        if (first == 0 && keys < p.keys) {  // what the first queries do not see
          if (dk) fill(dk + keys * p.width, (p.keys - keys) * p.width, T(0));
          if (dv) fill(dv + keys * p.value_width, (p.keys - keys) * p.value_width, T(0));
        }
        block.scale(scaled);
        block.weights(scaled, weights);
        if (dv) accumulate<T>({keys, p.value_width, count, {weights, 1, keys}, dout, dv, p.value_width}, first == 0);
        if (!call.dq && !dk) continue;
        product(Product<T>{count, keys, p.value_width, dout, {v.data, v.column, v.row}, dscores, keys});
        softmax_gradient(SoftmaxGradient<T>{count, keys, 1, dscores, weights, dscores, false});
        if (dk)
          accumulate<T>({keys, p.width, count, {dscores, 1, keys}, {scaled, p.width, 1}, dk, p.width}, first == 0);
        if (!call.dq) continue;
        T* dq = call.dq + (h * p.queries + first) * p.width;
        product(Product<T>{count, p.width, keys, {dscores, keys, 1}, k, dq, p.width});
        for (int64_t i = 0; i < count * p.width; i++) dq[i] = mul(dq[i], p.scale);
      }
    }
  });
}

#define INSTANTIATE(T)                                                      \
  template void scaled_dot_product_attention<T>(const AttentionOutput<T>&); \
  template void scaled_dot_product_attention_gradient<T>(const AttentionGradient<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
