// How a product on the tensor cores is divided and laid out in shared memory: all that is no instruction of the device,
// so that a C++ compiler can check it.
#pragma once

#include "tensor_cores.h"
#include "tiles.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// A warpgroup's instruction multiplies 64 rows of A; the tile of C has two warpgroups, and a third one loads.
constexpr int GROUP_THREADS = 128, CONSUMERS = 2, TENSOR_CORE_THREADS = (CONSUMERS + 1) * GROUP_THREADS;
constexpr int GROUP_ROWS = 64, STEP_DEPTH = 16;

// The 128-byte swizzle: lines of 128 bytes, of which 8 make an atom, in which 16-byte pieces change places.
constexpr int SWIZZLE_BYTES = 128, SWIZZLE_ELEMENTS = SWIZZLE_BYTES / 2, ATOM_BYTES = 8 * SWIZZLE_BYTES;
INLINE_HD uint32_t swizzled(uint32_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

// A block's tile of C, and what lies in its shared memory, in this order: stages of A and B, two buffers of 64x64
// results for each consumer, barriers. Everything before the barriers begins at multiples of an atom.
template <int Columns>
struct TensorCoreTile {
  static constexpr int rows = CONSUMERS * GROUP_ROWS, columns = Columns, depth = SWIZZLE_ELEMENTS;
  static constexpr int a_bytes = rows * depth * 2, b_bytes = columns * depth * 2, stage_bytes = a_bytes + b_bytes;
  static constexpr int stages = 192 * 1024 / stage_bytes;  // 4 or 6
  static constexpr int result_bytes = GROUP_ROWS * SWIZZLE_BYTES, result_buffers = 2;
  static constexpr int results_at = stages * stage_bytes;
  static constexpr int barriers_at = results_at + CONSUMERS * result_buffers * result_bytes;
  static constexpr int shared_bytes = ATOM_BYTES + barriers_at + 2 * stages * 8;  // an atom to align the rest
  static_assert(shared_bytes <= 227 * 1024);
};
using WideTile = TensorCoreTile<256>;
using NarrowTile = TensorCoreTile<128>;

// ---- shared memory as wgmma reads it --------------------------------------------------------------------------------

// An operand's tile in shared memory: K-major, `lines` lines of 64 elements along K; line-major, a block for every 64
// lines, of 64 places along K with 64 lines each.
constexpr int BLOCK_BYTES = SWIZZLE_ELEMENTS * SWIZZLE_BYTES;

// Bytes from one instruction's part of K to the next one's.
INLINE_HD int step_bytes(Major major) { return major == Major::depth ? STEP_DEPTH * 2 : STEP_DEPTH * SWIZZLE_BYTES; }

// The matrix descriptor of a tile at an address. The stride offset is that of the next 8 lines (K-major) or the next 8
// places along K (line-major), an atom both times; the leading offset that of the next 64 lines, which only a
// line-major tile has.
INLINE_HD uint64_t matrix_descriptor(uint32_t address, Major major) {
  const uint64_t leading = major == Major::lines ? BLOCK_BYTES : 16, stride = ATOM_BYTES, swizzle_of_128_bytes = 1;
  return (address & 0x3ffffu) >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle_of_128_bytes << 62;
}

// Where a thread's sum i lies in the 64 rows of its warpgroup.
INLINE_HD int fragment_row(int thread, int i) { return thread / WARP * 16 + i % 4 / 2 * 8 + thread % WARP / 4; }
INLINE_HD int fragment_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

// ---- global memory as TMA reads it ----------------------------------------------------------------------------------

// Arguments of cuTensorMapEncodeTiled: sizes and the box in elements, strides of all but the first dimension in bytes.
struct TensorMapArguments {
  const void* address;
  uint64_t size[3], stride[2];
  uint32_t box[3];
};

// `batch` matrices of `outer` lines of `inner` elements each. False where TMA cannot read them.
inline bool describe_matrices(const void* address, int64_t inner, int64_t outer, int64_t outer_stride, int64_t batch,
                              int64_t batch_stride, int box_outer, TensorMapArguments& map) {
  if (outer == 1) outer_stride = (inner + 7) / 8 * 8;  // never used, and yet it has to be a possible one
  if (batch == 1) batch_stride = outer * outer_stride;
  constexpr int64_t most = int64_t(1) << 31, most_stride = int64_t(1) << 39;  // 32-bit coordinates; 2^40 bytes
  auto possible = [&](int64_t stride) { return stride > 0 && stride < most_stride && stride % 8 == 0; };
  map = {address, {}, {}, {SWIZZLE_ELEMENTS, static_cast<uint32_t>(box_outer), 1}};
  const int64_t sizes[] = {inner, outer, batch}, strides[] = {outer_stride, batch_stride};
  for (int d = 0; d < 3; d++) map.size[d] = static_cast<uint64_t>(sizes[d]);
  for (int d = 0; d < 2; d++) map.stride[d] = static_cast<uint64_t>(2 * strides[d]);
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && inner > 0 && outer > 0 && batch > 0 && inner < most &&
         outer < most && batch < most && possible(outer_stride) && possible(batch_stride);
}

struct OperandMap {
  TensorMapArguments map;
  Major major;
  bool is_batched;  // false: the same matrix for the whole batch
};

// An operand of `lines` x `depth`, of which a tile has `tile_lines` lines. False where TMA cannot read it.
inline bool describe_operand(const void* address, int64_t lines, int64_t depth, int64_t line_stride,
                             int64_t depth_stride, int64_t batch, int64_t batch_stride, int tile_lines,
                             OperandMap& operand) {
  operand.is_batched = batch > 1 && batch_stride != 0;
  if (!operand.is_batched) batch = 1;
  operand.major = Major::depth;
  if ((depth_stride == 1 || depth == 1) &&
      describe_matrices(address, depth, lines, line_stride, batch, batch_stride, tile_lines, operand.map))
    return true;
  operand.major = Major::lines;
  return (line_stride == 1 || lines == 1) &&
         describe_matrices(address, lines, depth, depth_stride, batch, batch_stride, SWIZZLE_ELEMENTS, operand.map);
}

// ---- the product ----------------------------------------------------------------------------------------------------

// Tiles of C and steps of a tile's depth along K.
struct TensorCoreGrid {
  int down, across, batch, steps;
};
INLINE_HD int64_t tile_count(const TensorCoreGrid& grid) {
  return static_cast<int64_t>(grid.down) * grid.across * grid.batch;
}

struct TensorCorePlan {
  bool wide;
  TensorCoreGrid grid;
  OperandMap a, b;
  TensorMapArguments c;  // for C and preactivation, whose address is another one
};

// False where a product is not covered: transposed A times transposed B, strides or addresses that TMA does not take.
template <class S>
bool plan_tensor_core_product(const TensorCoreProduct<S>& p, int multiprocessors, TensorCorePlan& plan) {
  constexpr int64_t most = int64_t(1) << 31;
  if (p.M <= 0 || p.N <= 0 || p.K <= 0 || p.batch <= 0 || p.M >= most || p.N >= most || p.K >= most) return false;
  const int64_t down = ceil_div(p.M, WideTile::rows), wide = ceil_div(p.N, WideTile::columns),
                narrow = ceil_div(p.N, NarrowTile::columns);
  if (p.batch >= most / down / narrow) return false;
  // A narrow tile is half the work of a wide one, and reads a fifth more of shared memory for it: taken to cost 11/20.
  const int64_t waves = ceil_div(down * wide * p.batch, multiprocessors);
  plan.wide = 20 * waves <= 11 * ceil_div(down * narrow * p.batch, multiprocessors);
  plan.grid = {static_cast<int>(down), static_cast<int>(plan.wide ? wide : narrow), static_cast<int>(p.batch),
               static_cast<int>(ceil_div(p.K, WideTile::depth))};
  const int columns = plan.wide ? WideTile::columns : NarrowTile::columns;
  return describe_operand(p.A.data, p.M, p.K, p.A.row, p.A.column, p.batch, p.a_batch, WideTile::rows, plan.a) &&
         describe_operand(p.B.data, p.N, p.K, p.B.column, p.B.row, p.batch, p.b_batch, columns, plan.b) &&
         (plan.a.major == Major::depth || plan.b.major == Major::lines) &&
         describe_matrices(p.C, p.N, p.M, p.c_row, p.batch, p.c_batch, GROUP_ROWS, plan.c) && p.c_row >= p.N;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
