// Blocks of a cluster: they run at the same time on neighbouring multiprocessors, wait for each other, and reach each
// other's shared memory. From compute capability 9.0 on; code for older devices sees clusters of one block.
//
// A kernel that runs as clusters has dynamic shared memory alone.
#pragma once

#include "launch.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int PORTABLE_CLUSTER = 8;  // blocks that every device with clusters has room for

__device__ __forceinline__ int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#elif defined(__CUDACC__)
  return 0;
#else
  return simt::running_block;
#endif
}
__device__ __forceinline__ int cluster_size() {
#if __CUDA_ARCH__ >= 900
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#elif defined(__CUDACC__)
  return 1;
#else
  return static_cast<int>(simt::cluster.size());
#endif
}

// What lies in the shared memory of the block of that rank where *own lies in this block's.
template <class T>
__device__ __forceinline__ T* in_peer(T* own, [[maybe_unused]] int rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(own), "r"(rank));
  return reinterpret_cast<T*>(address);
#elif defined(__CUDACC__)
  return own;
#else
  return static_cast<T*>(simt::in_peer(own, rank));
#endif
}

// The barrier of all threads of the cluster, in two halves: what a thread wrote before it arrived, to any memory, is
// seen behind the others' wait. Every arrival is followed by a wait.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::arrive_at_cluster_barrier();
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#elif defined(__CUDACC__)
  __syncthreads();
#else
  simt::wait_at_cluster_barrier();
#endif
}
__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// Runs a kernel on `blocks` blocks in x, a multiple of `cluster`, so many in each; one in each needs no device of 9.0.
template <class... Parameters, class... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), int64_t blocks, int cluster, int threads,
                            int64_t shared_bytes, Device device, Arguments... arguments) {
  if (cluster == 1) return launch(kernel, blocks, threads, shared_bytes, device, arguments...);
  cudaLaunchConfig_t config;
  cudaError_t error = configure(kernel, blocks, threads, shared_bytes, device, config);
  if (error == cudaSuccess && cluster > PORTABLE_CLUSTER)
    error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
