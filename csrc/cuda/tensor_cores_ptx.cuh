// The instructions of sm_90a that the tensor core kernels are made of, one function each. Shared memory is addressed by
// numbers, as these instructions want it. A host that emulates them brings functions of the same names
// (tests/emulator/hopper.h).
#pragma once

#include <cuda.h>

#include "tensor_cores_plan.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void store_shared(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// ---- registers and threads ------------------------------------------------------------------------------------------

template <int Count>
__device__ __forceinline__ void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
// All threads of a warpgroup wait for each other at a barrier of their own; 0 is that of __syncthreads.
__device__ __forceinline__ void group_barrier(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(GROUP_THREADS) : "memory");
}

// ---- barriers in shared memory --------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes new barriers known to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_arrive_and_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits for the end of the barrier's phase of this parity; the one before the first has parity 1.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "WAIT:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra WAIT;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- the copy engine ------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// A box to shared memory, zeros where the tensor ends before it; its bytes, those zeros too, count for the barrier.
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// What of a box lies in the tensor, from shared memory; a group by itself.
__device__ __forceinline__ void store_box(const CUtensorMap& map, uint32_t from, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];\n\t"
      "cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(from), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// Until all but the thread's latest `Pending` stores have read shared memory.
template <int Pending>
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
// Ordinary stores to shared memory before this are seen by the copy engine after the next barrier.
__device__ __forceinline__ void copy_engine_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- the tensor cores -----------------------------------------------------------------------------------------------

__device__ __forceinline__ void multiply_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the latest `Pending` groups are done.
template <int Pending>
__device__ __forceinline__ void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// The compiler may move no use of the sums across this: it does not know that wgmma writes them later.
template <int Count>
__device__ __forceinline__ void pin(float (&sums)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

#define PYTORCH_EXT_TEN(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define PYTORCH_EXT_REGISTERS_0_TO_59                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PYTORCH_EXT_TEN(1) PYTORCH_EXT_TEN(2) PYTORCH_EXT_TEN(3) \
      PYTORCH_EXT_TEN(4) PYTORCH_EXT_TEN(5)
#define PYTORCH_EXT_REGISTERS_64 PYTORCH_EXT_REGISTERS_0_TO_59 "%60, %61, %62, %63"
#define PYTORCH_EXT_REGISTERS_128                                                                           \
  PYTORCH_EXT_REGISTERS_0_TO_59 PYTORCH_EXT_TEN(6) PYTORCH_EXT_TEN(7) PYTORCH_EXT_TEN(8) PYTORCH_EXT_TEN(9) \
      PYTORCH_EXT_TEN(10) PYTORCH_EXT_TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127"
#define PYTORCH_EXT_8_SUMS(i)                                                                                   \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define PYTORCH_EXT_64_SUMS(i)                                                                              \
  PYTORCH_EXT_8_SUMS(i), PYTORCH_EXT_8_SUMS(i + 8), PYTORCH_EXT_8_SUMS(i + 16), PYTORCH_EXT_8_SUMS(i + 24), \
      PYTORCH_EXT_8_SUMS(i + 32), PYTORCH_EXT_8_SUMS(i + 40), PYTORCH_EXT_8_SUMS(i + 48), PYTORCH_EXT_8_SUMS(i + 56)
// Operands behind the sums, from number `a` on: both descriptors, and which operand is line-major ("transposed").
#define PYTORCH_EXT_MULTIPLY(columns, type, registers, a, b, a_lines, b_lines, ...)                           \
  asm volatile(                                                                                               \
      "{\n\t.reg .pred adds;\n\tsetp.eq.u32 adds, 0, 0;\n\t"                                                  \
      "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" registers "}, %" #a ", %" #b \
      ", adds, 1, 1, %" #a_lines ", %" #b_lines ";\n\t}"                                                      \
      : __VA_ARGS__                                                                                           \
      : "l"(a_tile), "l"(b_tile), "n"(int(A)), "n"(int(B)))
#define PYTORCH_EXT_MULTIPLY_128(type) \
  PYTORCH_EXT_MULTIPLY(128, type, PYTORCH_EXT_REGISTERS_64, 64, 65, 66, 67, PYTORCH_EXT_64_SUMS(0))
#define PYTORCH_EXT_MULTIPLY_256(type)                                                                   \
  PYTORCH_EXT_MULTIPLY(256, type, PYTORCH_EXT_REGISTERS_128, 128, 129, 130, 131, PYTORCH_EXT_64_SUMS(0), \
                       PYTORCH_EXT_64_SUMS(64))

// Begins sums += A B, 64 rows of A, 16 along K: of the tiles that the descriptors say.
template <class S, Major A, Major B, int Count>
__device__ __forceinline__ void multiply(float (&sums)[Count], uint64_t a_tile, uint64_t b_tile) {
  static_assert(Count == 64 || Count == 128);
  constexpr bool is_bfloat16 = std::is_same_v<S, BFloat16>;
  if constexpr (Count == 128 && is_bfloat16)
    PYTORCH_EXT_MULTIPLY_256("bf16");
  else if constexpr (Count == 128)
    PYTORCH_EXT_MULTIPLY_256("f16");
  else if constexpr (is_bfloat16)
    PYTORCH_EXT_MULTIPLY_128("bf16");
  else
    PYTORCH_EXT_MULTIPLY_128("f16");
}

// narrow() of two neighbours at once, `low` at the lower address.
template <class S>
__device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same_v<S, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
