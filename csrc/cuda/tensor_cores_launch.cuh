// The launcher of the products on the tensor cores: tensor maps, and the kernel for the tile and the layout.
#pragma once

#include "tensor_cores.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

template <class S>
cudaError_t encode(EncodeTiled encode_tiled, TensorMapArguments map, CUtensorMap& encoded) {
  constexpr auto type =
      std::is_same_v<S, BFloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const uint32_t every_element[3] = {1, 1, 1};
  const CUresult result = encode_tiled(&encoded, type, 3, const_cast<void*>(map.address), map.size, map.stride, map.box,
                                       every_element, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                       CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class S, class Tile, Major A, Major B>
cudaError_t launch_tensor_core_product(const TensorCoreMaps& maps, const TensorCoreWork<S>& work, Device device) {
  const int64_t blocks = smaller<int64_t>(tile_count(work.grid), device.multiprocessors);
  return launch(tensor_core_product_kernel<S, Tile, A, B>, blocks, TENSOR_CORE_THREADS, Tile::shared_bytes, device,
                maps, work);
}

// As TensorCoreProduct says. cudaErrorNotSupported where plan_tensor_core_product() does not cover it.
template <class S>
cudaError_t tensor_core_product(const TensorCoreProduct<S>& p, EncodeTiled encode_tiled, Device device) {
  TensorCorePlan plan;
  if (!plan_tensor_core_product(p, device.multiprocessors, plan)) return cudaErrorNotSupported;
  TensorCoreMaps maps = {};
  TensorMapArguments preactivation = plan.c;
  preactivation.address = p.preactivation;
  cudaError_t error = encode<S>(encode_tiled, plan.a.map, maps.a);
  if (error == cudaSuccess) error = encode<S>(encode_tiled, plan.b.map, maps.b);
  if (error == cudaSuccess) error = encode<S>(encode_tiled, plan.c, maps.c);
  if (error == cudaSuccess && p.preactivation) error = encode<S>(encode_tiled, preactivation, maps.preactivation);
  if (error != cudaSuccess) return error;
  const TensorCoreWork<S> work{plan.grid,
                               static_cast<int>(p.M),
                               static_cast<int>(p.N),
                               plan.a.is_batched,
                               plan.b.is_batched,
                               p.preactivation != nullptr,
                               p.activation,
                               p.bias,
                               p.mask};
  auto of_layout = [&](auto tile) {
    using Tile = decltype(tile);
    if (plan.a.major == Major::lines)
      return launch_tensor_core_product<S, Tile, Major::lines, Major::lines>(maps, work, device);
    if (plan.b.major == Major::lines)
      return launch_tensor_core_product<S, Tile, Major::depth, Major::lines>(maps, work, device);
    return launch_tensor_core_product<S, Tile, Major::depth, Major::depth>(maps, work, device);
  };
  return plan.wide ? of_layout(WideTile{}) : of_layout(NarrowTile{});
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
