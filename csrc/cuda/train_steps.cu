#include "train_steps.cuh"

#include "queue.cuh"

namespace pytorch_ext::cuda {
namespace {

// Sixteen blocks where the device has room for a cluster of so many with all of their shared memory.
int most_blocks_of_a_cluster(int number, const Device& device) {
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number) != cudaSuccess || major < 9) return 1;
  int clusters = 0;
  const cudaError_t error = device::active_clusters(device::train_steps_kernel, device::LARGEST_CLUSTER,
                                                    device::STEP_THREADS, device.shared_bytes, device, &clusters);
  cudaGetLastError();
  return error == cudaSuccess && clusters > 0 ? device::LARGEST_CLUSTER : device::PORTABLE_CLUSTER;
}

}  // namespace

steps::Room train_steps_room(Queue& queue) {
  static int most_blocks[64];  // of the devices asked before; all threads would write the same
  steps::Room room{};
  run("TrainStep", queue, [&](Device device) {
    const int number = queue.device();
    if (number >= 64 || most_blocks[number] == 0) room.most_blocks = most_blocks_of_a_cluster(number, device);
    if (number < 64 && room.most_blocks) most_blocks[number] = room.most_blocks;
    if (number < 64) room.most_blocks = most_blocks[number];
    room.shared_bytes = device.shared_bytes;
    return cudaSuccess;
  });
  return room;
}

void train_steps(const TrainSteps& p, int64_t rows, Queue& queue) {
  run("TrainStep", queue, [&](Device device) {
    auto* own = workspace<float>(queue, device::train_steps_workspace(p, rows));
    return device::train_steps(p, rows, own, device);
  });
}

}  // namespace pytorch_ext::cuda
