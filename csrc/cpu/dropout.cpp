#include "dropout.h"

#include <utility>

#include "../numerics/philox.h"
#include "../numerics/vector.h"
#include "dtypes.h"
#include "parallel.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {
namespace {

typedef uint64_t WordLanes __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
constexpr int COUNTERS = VECTOR_BYTES / 8, WORDS = 4 * COUNTERS;

// GCC knows no product of lower halves by itself: it would multiply 64 bits by 64.
struct MultiplyLanes {
  INLINE_HD WordLanes operator()(WordLanes a, uint32_t b) const {
#if defined(__AVX512F__)
    return reinterpret_cast<WordLanes>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
    return reinterpret_cast<WordLanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#elif defined(__x86_64__)
    return reinterpret_cast<WordLanes>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(b)));
#else
    return (a & 0xFFFFFFFFu) * static_cast<uint64_t>(b);
#endif
  }
};

// Lanes `begin`, begin + 1, ... of a and b in turns: a, b, a, b, ...
template <int begin, int... l>
INLINE_HD WordLanes alternate(WordLanes a, WordLanes b, std::integer_sequence<int, l...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (begin + l / 2 + l % 2 * COUNTERS)...);
#else
  return __builtin_shuffle(a, b, WordLanes{static_cast<uint64_t>(begin + l / 2 + l % 2 * COUNTERS)...});
#endif
}

// The words of counters first, first + 1, ... in the order of the elements.
INLINE_HD void random_words(uint64_t first, uint64_t key, uint32_t* words) {
  WordLanes counter;
#pragma GCC unroll 8
  for (int l = 0; l < COUNTERS; l++) counter[l] = first + static_cast<uint64_t>(l);
  WordLanes c[4] = {counter, counter >> 32, WordLanes{}, WordLanes{}};
  philox(c, key, MultiplyLanes());
  WordLanes even = (c[0] & 0xFFFFFFFFu) | c[1] << 32, odd = (c[2] & 0xFFFFFFFFu) | c[3] << 32;
  constexpr auto lanes = std::make_integer_sequence<int, COUNTERS>();
  WordLanes first_half = alternate<0>(even, odd, lanes), second_half = alternate<COUNTERS / 2>(even, odd, lanes);
  std::memcpy(words, &first_half, sizeof first_half);
  std::memcpy(words + WORDS / 2, &second_half, sizeof second_half);
}

template <class T>
INLINE_HD Vector<T> mask_of(const uint32_t* words, uint32_t threshold, T scale) {
  if constexpr (std::is_same_v<T, float>) {
    Words w;
    std::memcpy(&w, words, sizeof w);
    return select(Mask<float>{w >= threshold}, FloatV(scale), FloatV(0.0f));
  } else {
    Vector<T> mask;
    for (int l = 0; l < Vector<T>::size; l++) mask.v[l] = words[l] >= threshold ? scale : T(0);
    return mask;
  }
}

}  // namespace

template <class S>
void dropout(const Dropout<S>& p) {
  using T = compute_t<S>;
  constexpr int64_t BLOCK = 4096, BLOCKS_PER_TASK = 4;
  const uint64_t key = p.current_key();
  cpu::parallel_for((p.n + BLOCK - 1) / BLOCK, BLOCKS_PER_TASK, [&](int64_t begin, int64_t end) {
    const int64_t last = end * BLOCK < p.n ? end * BLOCK : p.n;
    for (int64_t i = begin * BLOCK; i < last; i += WORDS) {
      uint32_t words[WORDS];
      random_words(static_cast<uint64_t>(i) / 4, key, words);
      for (int l = 0; l < WORDS; l += Vector<T>::size) {
        const int64_t left = last - i - l;
        store(p.y + i + l, mul(load(p.x + i + l, left, T(0)), mask_of<T>(words + l, p.threshold, p.scale)), left);
      }
    }
  });
}

#define PYTORCH_EXT_INSTANTIATE(S) template void dropout<S>(const Dropout<S>&);
PYTORCH_EXT_EACH_DTYPE(PYTORCH_EXT_INSTANTIATE)
#undef PYTORCH_EXT_INSTANTIATE

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
