// The orders in which sums are taken: version 1 of the contract. Changing a number here is version 2.
#pragma once

#include "primitive.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// A product sums over K in chunks: one ascending fma chain from +0 per chunk, chunks added left to right.
constexpr int PRODUCT_CHUNK = 256;

// Every other sum: element i goes to lane i mod 64, ascending, lanes start at +0, then lane l += lane l + 32, 16,
// ... 1. More than 4096 elements are cut into segments of 4096, whose results form a new row.
constexpr int SUM_LANES = 64;
constexpr int SUM_SEGMENT = 4096;

// Lanes from `used` on, which no element has reached, are +0 and need not be there: no lane is ever -0, so that adding
// them would change nothing.
template <class T>
INLINE_HD T halve_lanes(T* lanes, int used = SUM_LANES) {
  for (int width = SUM_LANES / 2; width >= 1; width /= 2)
    for (int l = 0; l < width && l + width < used; l++) lanes[l] = add(lanes[l], lanes[l + width]);
  return lanes[0];
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
