// scaled_dot_product_attention in one launch where a block's scores fit shared memory (attention_block.cuh). Else, and
// for gradients, out of products, masks and softmax, over as many scores at a time as a bounded workspace holds: some
// heads, and of these a block of queries.
#pragma once

#include "attention_block.cuh"
#include "attention_rows.cuh"
#include "product.cuh"
#include "softmax.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Scores, and gradients of scores, that are in memory at a time, but where a block of queries of one head has more.
constexpr int64_t MOST_SCORES = int64_t(1) << 25;

// Runs the steps of a call; or, without a workspace, adds up what they need of one.
template <class T>
class AttentionSteps {
 public:
  // `block`: where a causal query sees the keys of its own block alone, and where sums over queries are cut, blocks
  // are of so many queries. `arrays`: how many there are of the size of the scores.
  AttentionSteps(const Attention<T>& p, int64_t block, int arrays, int64_t most_scores, T* workspace, Device device)
      : p_(p), device_(device), runs_(workspace != nullptr) {
    const int64_t most = most_scores / arrays;
    rows_ = p.is_causal ? block : block * larger<int64_t>(1, most / (block * p.keys));
    rows_ = smaller(rows_, p.queries);
    at_once_ = smaller(p.heads, larger<int64_t>(1, most / (rows_ * p.keys)));
    T* at = workspace;
    auto take = [&](int64_t elements) {
      elements = ceil_div(elements, 64) * 64;  // what follows begins as aligned as this
      needed_ += elements;
      T* const taken = at;
      if (runs_) at += elements;
      return taken;
    };
    constexpr int64_t offset = sizeof(int64_t) / sizeof(T);
    score_offsets_ = reinterpret_cast<int64_t*>(take(offset * at_once_));
    query_offsets_ = reinterpret_cast<int64_t*>(take(offset * at_once_));
    hidden_ = reinterpret_cast<bool*>(take(at_once_ * rows_));
    scaled_ = take(at_once_ * p.queries * p.width);
    for (int i = 0; i < arrays; i++) scores_[i] = take(at_once_ * rows_ * p.keys);
    of_products_ = at;
  }

  // For some heads after the others: calls body() for each block of queries.
  template <class Body>
  cudaError_t each_block(Body&& body) {
    offsets(query_offsets_, p_.queries * p_.width);
    for (first_ = 0; first_ < p_.heads; first_ += at_once_) {
      rows.heads = smaller(at_once_, p_.heads - first_);
      scale({p_.q.first, p_.q.offset + first_}, scaled_);
      for (rows.begin = 0; rows.begin < p_.queries; rows.begin += rows_) {
        rows.count = smaller(rows_, p_.queries - rows.begin);
        rows.keys = p_.is_causal ? smaller(p_.keys, rows.begin + rows.count) : p_.keys;
        offsets(score_offsets_, rows.count * rows.keys);
        body();
      }
    }
    return error_;
  }

  // The operands of a block's products: of the inputs all of the head, or the queries of the block.
  Heads<T> all(const Heads<T>& x) const { return {x.first, x.offset + first_}; }
  Heads<T> own(const Heads<T>& x) const {
    return {{x.first.data + rows.begin * x.first.row, x.first.row, x.first.column}, x.offset + first_};
  }
  Heads<T> scaled() const { return {{scaled_ + rows.begin * p_.width, p_.width, 1}, query_offsets_}; }
  Heads<T> scores(int array) const { return {{scores_[array], rows.keys, 1}, score_offsets_}; }
  static Heads<T> transposed(const Heads<T>& x) { return {{x.first.data, x.first.column, x.first.row}, x.offset}; }
  // That of the block's heads in an array of (heads, `lines`, `columns`), from its line on.
  T* place(T* x, int64_t lines, int64_t columns, int64_t line = 0) const {
    return x + (first_ * lines + line) * columns;
  }

  // C, (heads, lines, n) of which m lines are written, is A B, or that is added to it.
  void multiply(int64_t m, int64_t n, int64_t k, const Heads<T>& A, const Heads<T>& B, T* C, int64_t lines,
                bool accumulates = false) {
    Product<T> q{m, n, k, A.first, B.first, C, n};
    q.batch = rows.heads;
    q.a_offset = A.offset;
    q.b_offset = B.offset;
    q.c_batch = lines * n;
    q.accumulates = accumulates;
    if (!runs_)
      product_elements_ = larger(product_elements_, product_workspace(q, device_));
    else
      step([&] { return product(q, of_products_, device_); });
  }
  // The block's weights, in the first array of scores.
  void weigh() {
    multiply(rows.count, rows.keys, p_.width, scaled(), transposed(all(p_.k)), scores_[0], rows.count);
    const int64_t count = rows.heads * rows.count, blocks = ceil_div(count, ROWS_PER_BLOCK);
    const bool masked = p_.added.first.data || p_.allowed.first.data;
    constexpr int threads = ROWS_PER_BLOCK * WARP;
    if (masked || p_.is_causal)
      step([&] {
        Attention<T> own = p_;
        own.added.offset += first_;
        own.allowed.offset += first_;
        return launch(mask_scores_kernel<T>, blocks, threads, 0, device_, own, rows, scores_[0],
                      masked ? hidden_ : nullptr);
      });
    step([&] { return softmax(Softmax<T>{count, rows.keys, 1, scores_[0], rows.keys, scores_[0], false}, device_); });
    if (masked)
      step([&] {
        return launch(hide_weights_kernel<T>, blocks, threads, 0, device_, count, rows.keys,
                      static_cast<const bool*>(hidden_), scores_[0]);
      });
  }
  // The gradient of the scores before the softmax, in the second array, from that of the weights there.
  void differentiate() {
    step([&] {
      return softmax_gradient(
          SoftmaxGradient<T>{rows.heads * rows.count, rows.keys, 1, scores_[1], scores_[0], scores_[1], false},
          device_);
    });
  }
  // y, (heads, queries, width), is x times the scale.
  void scale(const Heads<T>& x, T* y) {
    const int64_t count = rows.heads * p_.queries * p_.width;
    step([&] {
      return launch(scale_heads_kernel<T>, ceil_div(count, SCALE_THREADS), SCALE_THREADS, 0, device_, x, p_.queries,
                    p_.width, count, p_.scale, y);
    });
  }
  void scale_in_place(T* y) { scale({{y, p_.width, 1}, query_offsets_}, y); }
  // The lines from `line` on, of every head of (heads, lines, columns), become 0.
  void clear(T* x, int64_t lines, int64_t columns, int64_t line) {
    const int64_t count = (lines - line) * columns;
    step([&] {
      return launch(clear_heads_kernel<T>, ceil_div(rows.heads * count, SCALE_THREADS), SCALE_THREADS, 0, device_,
                    rows.heads, count, lines * columns, x + line * columns);
    });
  }
  bool is_last() const { return rows.begin + rows.count == p_.queries; }
  int64_t elements() const { return needed_ + product_elements_; }

  ScoreRows rows{};

 private:
  template <class Launch>
  void step(Launch&& launch) {
    if (runs_ && error_ == cudaSuccess) error_ = launch();
  }
  void offsets(int64_t* to, int64_t distance) {
    BatchOffsets b{1, {at_once_}, {distance}, at_once_, to};
    step([&] { return batch_offsets(b, device_); });
  }

  const Attention<T>& p_;
  Device device_;
  bool runs_;
  int64_t rows_, at_once_, first_ = 0, needed_ = 0, product_elements_ = 0;
  int64_t *score_offsets_, *query_offsets_;
  bool* hidden_;
  T *scaled_, *scores_[2] = {}, *of_products_;
  cudaError_t error_ = cudaSuccess;
};

template <class T>
cudaError_t run(const AttentionOutput<T>& call, AttentionSteps<T>& steps) {
  const Attention<T>& p = call.of;
  return steps.each_block([&] {
    steps.weigh();
    T* out = steps.place(call.output, p.queries, p.value_width, steps.rows.begin);
    steps.multiply(steps.rows.count, p.value_width, steps.rows.keys, steps.scores(0), steps.all(p.v), out, p.queries);
  });
}

template <class T>
cudaError_t run(const AttentionGradient<T>& call, AttentionSteps<T>& steps) {
  const Attention<T>& p = call.of;
  const ScoreRows& rows = steps.rows;
  return steps.each_block([&] {
    const int64_t count = rows.count, keys = rows.keys;
    const bool first = rows.begin == 0;
    T* dk = call.dk ? steps.place(call.dk, p.keys, p.width) : nullptr;
    T* dv = call.dv ? steps.place(call.dv, p.keys, p.value_width) : nullptr;
    if (first && keys < p.keys) {  // what the first queries do not see
      if (dk) steps.clear(dk, p.keys, p.width, keys);
      if (dv) steps.clear(dv, p.keys, p.value_width, keys);
    }
    steps.weigh();
    const Heads<T> weights = steps.scores(0), dscores = steps.scores(1), grad = steps.own(call.grad);
    if (dv) steps.multiply(keys, p.value_width, count, steps.transposed(weights), grad, dv, p.keys, !first);
    if (!call.dq && !dk) return;
    steps.multiply(count, keys, p.value_width, grad, steps.transposed(steps.all(p.v)),
                   const_cast<T*>(dscores.first.data), count);
    steps.differentiate();
    if (dk) steps.multiply(keys, p.width, count, steps.transposed(dscores), steps.scaled(), dk, p.keys, !first);
    if (!call.dq) return;
    T* dq = steps.place(call.dq, p.queries, p.width);
    steps.multiply(count, p.width, keys, dscores, steps.all(p.k), dq + rows.begin * p.width, p.queries);
    if (steps.is_last()) steps.scale_in_place(dq);
  });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <class T>
AttentionSteps<T> steps_of(const AttentionOutput<T>& call, int64_t most_scores, T* workspace, Device device) {
  return {call.of, QUERIES_PER_BLOCK, 1, most_scores, workspace, device};
}
template <class T>
AttentionSteps<T> steps_of(const AttentionGradient<T>& call, int64_t most_scores, T* workspace, Device device) {
  return {call.of, PRODUCT_CHUNK, 2, most_scores, workspace, device};
}

// Whether a call is one launch, and with what blocks.
template <class Call>
AttentionBlocks one_launch_blocks(const Call&, Device) {
  return {0, 0};
}
inline AttentionBlocks one_launch_blocks(const AttentionOutput<float>& call, Device device) {
  return attention_blocks(call.of, device);
}

// Elements of device memory that the launcher needs beside its arguments. Call: AttentionOutput, AttentionGradient.
template <class T, template <class> class Call>
int64_t attention_workspace(const Call<T>& call, Device device, int64_t most_scores = MOST_SCORES) {
  if (one_launch_blocks(call, device).queries) return 0;
  AttentionSteps<T> steps = steps_of(call, most_scores, static_cast<T*>(nullptr), device);
  run(call, steps);
  return steps.elements();
}

template <class T, template <class> class Call>
cudaError_t attention(const Call<T>& call, T* workspace, Device device, int64_t most_scores = MOST_SCORES) {
  if constexpr (std::is_same_v<Call<T>, AttentionOutput<float>>)
    if (const AttentionBlocks blocks = one_launch_blocks(call, device); blocks.queries)
      return launch_attention(call, blocks, device);
  AttentionSteps<T> steps = steps_of(call, most_scores, workspace, device);
  return run(call, steps);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
