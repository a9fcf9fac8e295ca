// Activations: value and derivative side by side. Each operation as written, in this order.
//
//   value(z)            y = f(z)
//   gradient(g, saved)  g * f'(z), where `saved` is y for relu, sigmoid and tanh, and z for gelu and silu
#pragma once

#include "functions.h"
#include "kinds.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

struct Identity {
  template <class V>
  static INLINE_HD V value(V z) {
    return z;
  }
  template <class V>
  static INLINE_HD V gradient(V g, V) {
    return g;
  }
};

struct Relu {  // NaN stays NaN
  template <class V>
  static INLINE_HD V value(V z) {
    return select(less(z, constant<V>(0)), constant<V>(0), z);
  }
  template <class V>
  static INLINE_HD V gradient(V g, V y) {
    return select(less_equal(y, constant<V>(0)), constant<V>(0), g);
  }
};

struct Sigmoid {
  template <class V>
  static INLINE_HD V value(V z) {
    return sigmoid(z);
  }
  template <class V>
  static INLINE_HD V gradient(V g, V y) {
    return mul(g, mul(y, sub(constant<V>(1), y)));
  }
};

struct Tanh {
  template <class V>
  static INLINE_HD V value(V z) {
    return tanh(z);
  }
  template <class V>
  static INLINE_HD V gradient(V g, V y) {
    return mul(g, fma(neg(y), y, constant<V>(1)));
  }
};

struct Gelu {  // z * Phi(z), Phi(z) = (1 + erf(z / sqrt 2)) / 2
  template <class V>
  static INLINE_HD V phi(V z) {
    return mul(constant<V>(0.5), add(constant<V>(1), erf(mul(z, constant<V>(0.70710678118654752440)))));
  }
  template <class V>
  static INLINE_HD V value(V z) {
    return mul(z, phi(z));
  }
  template <class V>
  static INLINE_HD V gradient(V g, V z) {  // Phi(z) + z exp(-z^2 / 2) / sqrt(2 pi)
    V density = mul(constant<V>(0.39894228040143267794), exp(mul(mul(z, z), constant<V>(-0.5))));
    return mul(g, fma(z, density, phi(z)));
  }
};

struct GeluTanh {  // z (1 + tanh(u)) / 2, u = sqrt(2 / pi) (z + 0.044715 z^3)
  template <class V>
  static INLINE_HD V inner(V z) {
    V cubed = mul(mul(z, z), z);
    return mul(constant<V>(0.79788456080286535588), fma(constant<V>(0.044715), cubed, z));
  }
  template <class V>
  static INLINE_HD V value(V z) {
    return mul(mul(constant<V>(0.5), z), add(constant<V>(1), tanh(inner(z))));
  }
  template <class V>
  static INLINE_HD V gradient(V g, V z) {
    V t = tanh(inner(z));
    V slope = mul(constant<V>(0.79788456080286535588), fma(constant<V>(0.134145), mul(z, z), constant<V>(1)));
    V right = mul(mul(mul(constant<V>(0.5), z), fma(neg(t), t, constant<V>(1))), slope);
    return mul(g, fma(constant<V>(0.5), add(constant<V>(1), t), right));
  }
};

struct Silu {  // z sigmoid(z)
  template <class V>
  static INLINE_HD V value(V z) {
    return mul(z, sigmoid(z));
  }
  template <class V>
  static INLINE_HD V gradient(V g, V z) {
    V s = sigmoid(z);
    return mul(g, mul(s, fma(z, sub(constant<V>(1), s), constant<V>(1))));
  }
};

// Calls f with the activation's struct: one switch outside the loop, none inside.
template <class F>
INLINE_HD void with_activation(Activation a, F&& f) {
  switch (a) {
    case Activation::none: return f(Identity{});
    case Activation::relu: return f(Relu{});
    case Activation::sigmoid: return f(Sigmoid{});
    case Activation::tanh: return f(Tanh{});
    case Activation::gelu: return f(Gelu{});
    case Activation::gelu_tanh: return f(GeluTanh{});
    case Activation::silu: return f(Silu{});
  }
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
