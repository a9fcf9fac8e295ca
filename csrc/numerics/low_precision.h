// Storage types of 16 bits. Arithmetic on them happens in float: load widens exactly, store rounds to nearest even.
#pragma once

#include "kinds.h"
#include "primitive.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

INLINE_HD float widen(float x) { return x; }
INLINE_HD double widen(double x) { return x; }
INLINE_HD float widen(BFloat16 x) { return from_bits(static_cast<int32_t>(static_cast<uint32_t>(x.bits) << 16)); }
INLINE_HD float widen(Half x) {
  uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  uint32_t result;
  if (magnitude >= 0x7c00u)  // infinity, NaN
    result = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  else if (magnitude >= 0x400u)
    result = (magnitude << 13) + (112u << 23);
  else  // a subnormal is an integer multiple of 2^-24
    result = static_cast<uint32_t>(bits(mul(static_cast<float>(magnitude), 0x1p-24f)));
  return from_bits(static_cast<int32_t>(sign | result));
}

template <class S>
INLINE_HD S narrow(compute_t<S> x);
template <>
INLINE_HD float narrow<float>(float x) {
  return x;
}
template <>
INLINE_HD double narrow<double>(double x) {
  return x;
}
template <>
INLINE_HD BFloat16 narrow<BFloat16>(float x) {
  uint32_t b = static_cast<uint32_t>(bits(x));
  if ((b & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(b >> 16 | 0x40u)};  // keep NaN a quiet NaN
  return {static_cast<uint16_t>((b + 0x7fffu + (b >> 16 & 1u)) >> 16)};
}
template <>
INLINE_HD Half narrow<Half>(float x) {
  uint32_t b = static_cast<uint32_t>(bits(x)), sign = b >> 16 & 0x8000u, magnitude = b & 0x7fffffffu, result;
  if (magnitude > 0x7f800000u)
    result = 0x7e00u;
  else if (magnitude >= 0x47800000u)  // 65536 and above
    result = 0x7c00u;
  else if (magnitude < 0x38800000u)  // below 2^-14: the sum puts the integer multiple of 2^-24 into the low bits
    result = static_cast<uint32_t>(bits(add(from_bits(static_cast<int32_t>(magnitude)), 0.5f))) - 0x3f000000u;
  else  // rounding may carry into the exponent, up to infinity: that is right
    result = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  return {static_cast<uint16_t>(sign | result)};
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
