// The tensor core products of csrc/cuda with C linkage: their launcher on the emulated device, and the functions that
// say where things lie.
#include "simt.h"
//
#include "hopper.h"
//
#include "../../csrc/cuda/tensor_cores_launch.cuh"

using namespace pytorch_ext;
namespace kernels = pytorch_ext::PYTORCH_EXT_ISA;

namespace {

template <class S>
int run(const TensorCoreProduct<S>& p, int multiprocessors) {
  return kernels::tensor_core_product(p, &cuTensorMapEncodeTiled, {nullptr, multiprocessors, simt::MOST_SHARED_BYTES});
}

void put(const kernels::TensorMapArguments& map, int64_t* at) {
  at[0] = reinterpret_cast<int64_t>(map.address);
  for (int d = 0; d < 3; d++) at[1 + d] = static_cast<int64_t>(map.size[d]);
  for (int d = 0; d < 2; d++) at[4 + d] = static_cast<int64_t>(map.stride[d]);
  for (int d = 0; d < 3; d++) at[6 + d] = map.box[d];
}

}  // namespace

extern "C" {

// late: 1 for boxes, 2 for products, 4 for stored boxes
int product_of_bfloat16(const TensorCoreProduct<BFloat16>* p, int multiprocessors, int late, int reversed) {
  hopper::start(late & 1, late & 2, late & 4);
  simt::reversed = reversed;
  return run(*p, multiprocessors);
}
int product_of_half(const TensorCoreProduct<Half>* p, int multiprocessors, int late, int reversed) {
  hopper::start(late & 1, late & 2, late & 4);
  simt::reversed = reversed;
  return run(*p, multiprocessors);
}
const char* emulator_error() { return simt::error.c_str(); }
const char* launched_kernels() {
  static std::string text;
  text.clear();
  for (const auto& [name, count] : simt::launched) text += name + " " + std::to_string(count) + "\n";
  return text.c_str();
}

// wide, down, across, batch, steps, then for A, B: major, is_batched, and for A, B, C: address, sizes, strides, box
int plan(const TensorCoreProduct<BFloat16>* p, int multiprocessors, int64_t* found) {
  kernels::TensorCorePlan plan;
  if (!kernels::plan_tensor_core_product(*p, multiprocessors, plan)) return 0;
  const int64_t head[] = {plan.wide,         plan.grid.down,
                          plan.grid.across,  plan.grid.batch,
                          plan.grid.steps,   static_cast<int>(plan.a.major),
                          plan.a.is_batched, static_cast<int>(plan.b.major),
                          plan.b.is_batched};
  std::copy(std::begin(head), std::end(head), found);
  put(plan.a.map, found + 9), put(plan.b.map, found + 18), put(plan.c, found + 27);
  return 1;
}
void tile_at(int down, int across, int batch, int64_t index, int* found) {
  const kernels::TileAt at = kernels::tile_at(kernels::TensorCoreGrid{down, across, batch, 1}, index);
  found[0] = at.down, found[1] = at.across, found[2] = at.batch;
}
uint64_t matrix_descriptor(uint32_t address, int major) {
  return kernels::matrix_descriptor(address, static_cast<kernels::Major>(major));
}
int step_bytes(int major) { return kernels::step_bytes(static_cast<kernels::Major>(major)); }
int fragment_row(int thread, int i) { return kernels::fragment_row(thread, i); }
int fragment_column(int thread, int i) { return kernels::fragment_column(thread, i); }
uint32_t swizzled(uint32_t offset) { return kernels::swizzled(offset); }
}
