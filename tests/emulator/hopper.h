// What sm_90a has beyond simt.h, for the kernels of csrc/cuda/tensor_cores.cuh: functions named as those of
// tensor_cores_ptx.cuh that do what the PTX manual says of the instructions there: barriers with phases and byte
// counts, boxes copied in the 128-byte swizzle, wgmma on matrix descriptors, with its fragments in registers.
//
// What is asynchronous on the device happens here at once, or as late as it may: boxes when no thread can go on,
// products and the reading of stored boxes when somebody waits for them. What is used before it is there, or
// overwritten before it was used, gives wrong results in one of the two.
#pragma once

#include <algorithm>
#include <deque>

#include "../../csrc/cuda/tensor_cores_plan.h"

#define __grid_constant__

// ---- cuda.h ---------------------------------------------------------------------------------------------------------

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

struct CUtensorMap {
  uint16_t* address;
  uint64_t size[3], stride[2];
  uint32_t box[3];
};

// The requirements of the driver's documentation, for tensors of three dimensions and 16-bit elements.
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, uint32_t rank, void* address,
                                       const uint64_t* size, const uint64_t* stride, const uint32_t* box,
                                       const uint32_t* element_stride, CUtensorMapInterleave, CUtensorMapSwizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  bool good = rank == 3 && reinterpret_cast<uintptr_t>(address) % 16 == 0 && box[0] * 2 % 16 == 0 && box[0] * 2 <= 128;
  for (int d = 0; d < 3; d++)
    good = good && size[d] > 0 && size[d] <= uint64_t(1) << 32 && box[d] > 0 && box[d] <= 256 && element_stride[d] == 1;
  for (int d = 0; d < 2; d++) good = good && stride[d] > 0 && stride[d] % 16 == 0 && stride[d] < uint64_t(1) << 40;
  *map = {
      static_cast<uint16_t*>(address), {size[0], size[1], size[2]}, {stride[0], stride[1]}, {box[0], box[1], box[2]}};
  return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

namespace hopper {

inline bool late_boxes, late_products, late_stores;

// Addresses of shared memory are not multiples of an atom by themselves: other shared memory may lie before it.
constexpr uint32_t SHARED_BEGIN = 0x430;

template <class T>
T& shared(uint32_t address) {
  if (address < SHARED_BEGIN || address + sizeof(T) > SHARED_BEGIN + simt::dynamic_bytes)
    simt::fail("an address outside the block's shared memory");
  return *reinterpret_cast<T*>(simt::shared_memory + (address - SHARED_BEGIN));
}

inline void expect(bool condition, const char* otherwise) {
  if (!condition) simt::fail(otherwise);
}

// The 128-byte swizzle, a permutation of addresses: bits 4 to 6 change by bits 7 to 9.
inline uint32_t swizzle(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

struct Barrier {
  int16_t arrivals, missing;  // of a phase; -1 where it was never initialised
  int32_t phase : 1, bytes : 31;
  void check() {
    if (missing || bytes) return;
    missing = arrivals;
    phase = ~phase;
  }
};
static_assert(sizeof(Barrier) == 8);
inline Barrier& barrier_at(uint32_t address) {
  expect(address % 8 == 0, "a barrier at no multiple of 8");
  Barrier& barrier = shared<Barrier>(address);
  expect(barrier.arrivals > 0, "a barrier that was not initialised");
  return barrier;
}

// Work that is asynchronous to its thread.
using Work = std::function<void()>;
inline std::deque<Work> boxes;  // on their way to shared memory

// A thread's groups of products and of stored boxes, the latest last.
struct Groups {
  std::vector<Work> open;
  std::deque<std::vector<Work>> committed;

  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  void wait(size_t pending) {
    for (; committed.size() > pending; committed.pop_front())
      for (Work& work : committed.front()) work();
  }
};
struct ThreadState {
  Groups products, stores;
  bool has_unfenced_stores = false;
};
inline std::vector<ThreadState> thread_states;
inline ThreadState& self() { return thread_states[simt::running]; }

struct NamedBarrier {
  int arrived = 0;
  int64_t generation = 0;
};
inline NamedBarrier named_barriers[16];

inline void start(bool boxes_late, bool products_late, bool stores_late) {
  late_boxes = boxes_late, late_products = products_late, late_stores = stores_late;
  boxes.clear();
  thread_states.assign(1024, {});
  for (NamedBarrier& barrier : named_barriers) barrier = {};
  simt::background = [] {  // the order in which boxes arrive is open
    if (boxes.empty()) return false;
    Work work = simt::reversed ? boxes.back() : boxes.front();
    simt::reversed ? boxes.pop_back() : boxes.pop_front();
    work();
    return true;
  };
}

// Calls f(element of global memory or null, address in shared memory) for each element of a box.
template <class F>
void each_of_box(const CUtensorMap& map, uint32_t address, int x, int y, int z, F&& f) {
  expect(address % 1024 == 0, "a swizzled box at no multiple of 1024");
  for (uint32_t k = 0, i = 0; k < map.box[2]; k++)
    for (uint32_t j = 0; j < map.box[1]; j++)
      for (uint32_t e = 0; e < map.box[0]; e++, i++) {
        const int64_t at[] = {int64_t(x) + e, int64_t(y) + j, int64_t(z) + k};
        bool inside = true;
        for (int d = 0; d < 3; d++) inside = inside && at[d] >= 0 && at[d] < static_cast<int64_t>(map.size[d]);
        uint16_t* element = map.address + at[0] + at[1] * static_cast<int64_t>(map.stride[0] / 2) +
                            at[2] * static_cast<int64_t>(map.stride[1] / 2);
        f(inside ? element : nullptr, swizzle(address + 2 * i));
      }
}

// A matrix descriptor's fields, by the PTX manual's table.
struct Descriptor {
  uint32_t start, leading, stride;
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    expect(bits >> 62 == 1 && (bits >> 49 & 7) == 0, "a descriptor of another swizzle than 128 bytes");
  }
  // Where the element at (line, k) of the 16 along K lies, by the canonical layouts of the 128-byte swizzle: K-major
  // ((8, n), 8 elements x 2) with n at the stride offset; line-major ((64 elements, n), (8, 2)), n at the leading, 2
  // at the stride offset.
  uint32_t address(int line, int k, bool is_line_major) const {
    if (is_line_major) return swizzle(start + line / 64 * leading + line % 64 * 2 + k / 8 * stride + k % 8 * 128);
    return swizzle(start + line / 8 * stride + line % 8 * 128 + k * 2);
  }
};

}  // namespace hopper

namespace pytorch_ext::PYTORCH_EXT_ISA {

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - simt::shared_memory) + hopper::SHARED_BEGIN;
}
inline void store_shared(uint32_t address, uint32_t value) {
  hopper::expect(address % 4 == 0, "a store of 4 bytes at no multiple of 4");
  hopper::shared<uint32_t>(address) = value;
  hopper::self().has_unfenced_stores = true;
}

template <int Count>
void give_registers_back() {}
template <int Count>
void take_registers() {}
inline void group_barrier(int number) {
  hopper::expect(!hopper::self().has_unfenced_stores, "stores that the copy engine may not see yet");
  hopper::NamedBarrier& barrier = hopper::named_barriers[number];
  const int64_t generation = barrier.generation;
  if (++barrier.arrived == GROUP_THREADS) {
    barrier.arrived = 0;
    barrier.generation++;
  }
  simt::wait_until([&barrier, generation] { return barrier.generation != generation; });
}

inline void barrier_init(uint32_t barrier, int arrivals) {
  hopper::shared<hopper::Barrier>(barrier) = {static_cast<int16_t>(arrivals), static_cast<int16_t>(arrivals), 0, 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive_and_expect(uint32_t address, int bytes) {
  hopper::Barrier& barrier = hopper::barrier_at(address);
  hopper::expect(barrier.missing > 0, "more arrivals at a barrier than its phase has");
  barrier.bytes += bytes;
  barrier.missing--;
  barrier.check();
}
inline void barrier_arrive(uint32_t address) { barrier_arrive_and_expect(address, 0); }
inline void barrier_wait(uint32_t address, int parity) {
  simt::wait_until([=] { return (hopper::barrier_at(address).phase & 1) != parity; });
}

inline void prefetch_map(const CUtensorMap&) {}
inline void load_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x, int y, int z) {
  auto work = [=] {  // with a copy of the map: its thread may end before
    hopper::each_of_box(map, to, x, y, z, [](const uint16_t* element, uint32_t address) {
      hopper::shared<uint16_t>(address) = element ? *element : 0;
    });
    hopper::Barrier& full = hopper::barrier_at(barrier);
    full.bytes -= static_cast<int>(2 * map.box[0] * map.box[1] * map.box[2]);
    full.check();
  };
  hopper::late_boxes ? hopper::boxes.push_back(work) : work();
}
inline void store_box(const CUtensorMap& map, uint32_t from, int x, int y, int z) {
  auto work = [=] {  // with a copy of the map: its thread may end before
    hopper::each_of_box(map, from, x, y, z, [](uint16_t* element, uint32_t address) {
      if (element) *element = hopper::shared<uint16_t>(address);
    });
  };
  hopper::late_stores ? hopper::self().stores.open.push_back(work) : work();
  hopper::self().stores.commit();
}
template <int Pending>
void wait_for_stores() {
  hopper::self().stores.wait(Pending);
}
inline void copy_engine_fence() { hopper::self().has_unfenced_stores = false; }

inline void multiply_fence() {}
inline void multiply_commit() { hopper::self().products.commit(); }
template <int Pending>
void multiply_wait() {
  hopper::self().products.wait(Pending);
}
template <int Count>
void pin(float (&)[Count]) {}

// The fragments by the PTX manual: thread t of the warpgroup has rows 16 (t / 32) + t % 32 / 4 and 8 below, of every 8
// columns 2 (t % 4) and its neighbour.
template <class S, Major A, Major B, int Count>
void multiply(float (&sums)[Count], uint64_t a_tile, uint64_t b_tile) {
  const int t = static_cast<int>(threadIdx.x) % GROUP_THREADS;
  auto work = [&sums, a_tile, b_tile, t] {
    const hopper::Descriptor a(a_tile), b(b_tile);
    auto element = [](const hopper::Descriptor& d, int line, int k, bool is_line_major) {
      return widen(hopper::shared<S>(d.address(line, k, is_line_major)));
    };
    float rows[2][STEP_DEPTH];
    for (int r = 0; r < 2; r++)
      for (int k = 0; k < STEP_DEPTH; k++)
        rows[r][k] = element(a, t / 32 * 16 + t % 32 / 4 + 8 * r, k, A == Major::lines);
    for (int n = 0; n < Count / 4; n++)
      for (int c = 0; c < 2; c++)
        for (int k = 0; k < STEP_DEPTH; k++) {
          const float y = element(b, 8 * n + 2 * (t % 4) + c, k, B == Major::lines);
          for (int r = 0; r < 2; r++) sums[4 * n + 2 * r + c] += rows[r][k] * y;
        }
  };
  hopper::late_products ? hopper::self().products.open.push_back(work) : work();
}

template <class S>
uint32_t narrow_pair(float low, float high) {
  return narrow<S>(low).bits | static_cast<uint32_t>(narrow<S>(high).bits) << 16;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
