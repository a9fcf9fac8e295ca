// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four words of 32 random bits as a
// function of a counter and a key, so that every element of a tensor has its own, whoever computes it.
#pragma once

#include "platform.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int PHILOX_ROUNDS = 10;
constexpr uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;  // added to the key from round to round

// A word is the lower half of a lane of 64 bits; the upper half is of no account. The product has 64 bits.
struct MultiplyWords {
  INLINE_HD uint64_t operator()(uint64_t a, uint32_t b) const { return (a & 0xFFFFFFFFu) * b; }
};

// The counter c, four words, becomes four random words. Lane is uint64_t or a vector of them.
template <class Lane, class Multiply>
INLINE_HD void philox(Lane (&c)[4], uint64_t key, Multiply multiply) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    Lane first = multiply(c[0], PHILOX_M0), second = multiply(c[2], PHILOX_M1);
    c[0] = (second >> 32) ^ c[1] ^ static_cast<uint64_t>(k0);
    c[1] = second;
    c[2] = (first >> 32) ^ c[3] ^ static_cast<uint64_t>(k1);
    c[3] = first;
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
}

// The word of logical element i: word i mod 4 of counter i div 4.
INLINE_HD uint32_t random_word(int64_t i, uint64_t key) {
  uint64_t counter = static_cast<uint64_t>(i) / 4;
  uint64_t c[4] = {counter, counter >> 32, 0, 0};
  philox(c, key, MultiplyWords());
  return static_cast<uint32_t>(c[i % 4]);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
