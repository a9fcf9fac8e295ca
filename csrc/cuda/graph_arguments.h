// What is new in every launch of a graph. No CUDA header is needed to include this.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../numerics/updates.h"

namespace pytorch_ext {

// Elements of 4 bytes that the caller has, and where the graph's launches have them.
struct GraphInput {
  const uint32_t* from = nullptr;
  uint32_t* to = nullptr;
  int64_t count = 0;
};

// The arguments of a graph's first kernel, which puts them where the others read them. CUDA copies them when the graph
// is launched: the caller may change them while launches before still run.
struct GraphArguments {
  static constexpr int most = 480;  // a kernel's arguments end at 4096 bytes
  GraphInput inputs[2];
  uint64_t* at;  // `most` numbers in the device's memory
  int count = 0;
  uint64_t numbers[most];

  // Adds a value to the numbers; where the graph's launches find it, or null where there is no room.
  template <class T>
  const T* add(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= alignof(uint64_t));
    constexpr int words = (sizeof(T) + sizeof(uint64_t) - 1) / sizeof(uint64_t);
    if (count > most - words) return nullptr;
    memcpy(numbers + count, &value, sizeof(T));
    count += words;
    return reinterpret_cast<const T*>(at + count - words);
  }
};
static_assert(sizeof(GraphArguments) <= 4096 - 64);

// Adam's numbers of one step.
template <class T>
struct AdamNumbers {
  AdamRule<T> rule;
  T negative_step_size, scale;
};

}  // namespace pytorch_ext
