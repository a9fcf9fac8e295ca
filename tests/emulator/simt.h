// A SIMT emulator: CUDA kernels, compiled by a C++ compiler from their own source, run on the host.
//
// Every thread of a block is a fiber with a stack of its own. It runs until it waits (at a barrier, for its warp, or
// for a condition) or ends; when no thread can run, those whose wait is over are released. Blocks run one after the
// other, so that shared memory is static memory; those of a cluster, which have only dynamic shared memory, run side by
// side, each as far as it can without the others. The schedule goes forwards, or with `reversed` backwards through
// threads and blocks: what depends on it shows as a difference between the two.
//
// Faults end the launch with a message in `error`: threads that wait for each other, a shuffle from a lane that takes
// no part, an access to memory that the host protects, a requirement of the kernel that does not hold.
#pragma once

#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#define __global__ __attribute__((noinline, visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  int64_t count() const { return int64_t(x) * y * z; }
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};

namespace simt {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 64 << 10, SHARED_BYTES = 48 << 10, MOST_SHARED_BYTES = 227 << 10;
constexpr int MOST_CLUSTER_BLOCKS = 16, PORTABLE_CLUSTER_BLOCKS = 8;

enum class State { ready, at_barrier, in_warp, at_condition, at_cluster_barrier, ended };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  State state;
  bool started;
  ucontext_t start;
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  uint32_t mask;                    // of a warp operation: the lanes that take part,
  int source;                       // the lane it reads,
  uint64_t given, taken;            // its own value and the one it reads
  std::function<bool()> condition;  // what a thread at a condition waits for
  int64_t arrived;                  // at the cluster's barrier, in this phase of it; -1: has not, or has waited
  int64_t cluster_waits;            // how often it has come through there
  std::vector<Copy> copies;         // begun, and not yet waited for
};

struct Launch {        // what a launch asked for, kept in `recorded` instead of being run
  std::string kernel;  // the symbol's name
  dim3 grid, block;
  size_t shared_bytes;
  int cluster;                         // blocks of one
  std::vector<std::string> arguments;  // their bytes
};

struct Block {  // one of those that run side by side
  dim3 index;
  unsigned char* shared;
  bool ended;
};

inline bool reversed = false, recording = false;
inline std::vector<Launch> recorded;
inline std::string error;
inline std::map<std::string, int64_t> launched;  // how often, by the kernel's name

inline std::vector<Block> cluster;
inline int64_t cluster_phase;        // how often all threads have come to the cluster's barrier
inline int64_t left_out = -1;        // the number of a cluster's barrier that is not there: a fault that a test plants
inline std::vector<Thread> threads;  // of the cluster, a block's from a multiple of WARP on
inline int running, running_block;   // the thread that runs, and its block in the cluster
inline jmp_buf scheduler;
inline sigjmp_buf fault;
inline void* fault_address;
inline const char* failure;  // of the kernel's own requirements, or null
inline std::function<void()> body;
// Does a piece of what threads have begun and do not do themselves; false where nothing is left of it.
inline std::function<bool()> background = [] { return false; };
alignas(128) inline unsigned char shared_memories[MOST_CLUSTER_BLOCKS][MOST_SHARED_BYTES];
inline unsigned char* shared_memory = shared_memories[0];  // of the block that runs
inline size_t dynamic_bytes;                               // of this launch
// Told before a kernel runs (true) and after it: memory may be the device's alone.
inline std::function<void(bool)> while_running = [](bool) {};
// What is sent to a stream. Of a kernel's launch there is another one with another shape and other arguments.
struct Work {
  std::function<cudaError_t()> run;
  const void* kernel = nullptr;
  std::function<std::function<cudaError_t()>(dim3 grid, dim3 block, size_t shared_bytes, void** arguments)> with = {};
};
// Takes work that is to run later, when what is sent to its stream is recorded for a graph; else it answers false.
inline std::function<bool(cudaStream_t, Work)> postpone = [](cudaStream_t, const Work&) { return false; };
inline std::map<const void*, size_t> allowed_shared_bytes;  // of kernels that have asked for more than SHARED_BYTES
inline std::map<const void*, bool> allowed_large_clusters;  // of more than PORTABLE_CLUSTER_BLOCKS

inline std::string name_of(const void* function) {
  Dl_info info;
  return dladdr(function, &info) && info.dli_sname ? info.dli_sname : "a kernel without a visible name";
}

inline std::string text(const dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

// ---- one thread -----------------------------------------------------------------------------------------------------

__attribute__((noinline)) inline void wait(State state) {
  threads[running].state = state;
  if (_setjmp(threads[running].here) == 0) _longjmp(scheduler, 1);
}

inline void wait_until(std::function<bool()> condition) {
  threads[running].condition = std::move(condition);
  wait(State::at_condition);
}

inline void thread_body() {
  while (true) {  // block after block, launch after launch
    body();
    wait(State::ended);
  }
}

inline void make_ready(Thread& t) {
  t.state = State::ready;
  t.arrived = -1;
  t.cluster_waits = 0;
  t.copies.clear();
  if (t.started) return;
  if (!t.stack) t.stack = std::make_unique<char[]>(STACK_BYTES);
  getcontext(&t.start);
  t.start.uc_stack = {t.stack.get(), 0, STACK_BYTES};
  t.start.uc_link = nullptr;
  makecontext(&t.start, thread_body, 0);
}

inline int first_thread(int block) {
  const int count = static_cast<int>(blockDim.count());
  return block * ((count + WARP - 1) / WARP * WARP);
}

// Runs the block's thread number i until it waits or ends.
__attribute__((noinline)) inline void resume(int block, int i) {
  const int t = first_thread(block) + i;
  running = t;
  running_block = block;
  blockIdx = cluster[block].index;
  shared_memory = cluster[block].shared;
  threadIdx = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
  if (_setjmp(scheduler)) return;
  if (threads[t].started) _longjmp(threads[t].here, 1);
  threads[t].started = true;
  setcontext(&threads[t].start);
}

// ---- one block ------------------------------------------------------------------------------------------------------

// Lets the threads of every warp operation go whose lanes have all come. False with an error in `error`.
inline bool release_warps(Thread* of_block, int count, bool& released) {
  for (int t = 0; t < count; t++) {
    if (of_block[t].state != State::in_warp) continue;
    const int first = t / WARP * WARP;
    const uint32_t mask = of_block[t].mask;
    bool complete = true;
    for (int l = 0; l < WARP && first + l < count; l++) {
      if (!(mask >> l & 1)) continue;
      const Thread& other = of_block[first + l];
      if (other.state == State::ended)
        return error = "lane " + std::to_string(l) + " has ended and cannot take part in a warp operation", false;
      complete = complete && other.state == State::in_warp && other.mask == mask;
    }
    if (!complete) continue;
    for (int l = 0; l < WARP && first + l < count; l++) {
      if (!(mask >> l & 1)) continue;
      Thread& thread = of_block[first + l];
      if (first + thread.source >= count || !(mask >> thread.source & 1))
        return error = "a shuffle reads lane " + std::to_string(thread.source) + ", which takes no part", false;
      thread.taken = of_block[first + thread.source].given;
    }
    for (int l = 0; l < WARP && first + l < count; l++)
      if (mask >> l & 1) of_block[first + l].state = State::ready;
    released = true;
  }
  return true;
}

inline bool release_barrier(Thread* of_block, int count) {
  bool released = false;
  for (int t = 0; t < count; t++)
    if (of_block[t].state != State::at_barrier && of_block[t].state != State::ended) return false;
  for (int t = 0; t < count; t++)
    if (of_block[t].state == State::at_barrier) of_block[t].state = State::ready, released = true;
  return released;
}

inline bool release_conditions(Thread* of_block, int count) {
  bool released = false;
  for (int t = 0; t < count; t++)
    if (of_block[t].state == State::at_condition && of_block[t].condition())
      of_block[t].state = State::ready, released = true;
  return released;
}

// Runs a block until its threads have ended or wait for other blocks. False with an error in `error`.
inline bool advance(int block, int count, bool& advanced) {
  Thread* of_block = &threads[first_thread(block)];
  while (true) {
    for (int i = 0; i < count; i++) {
      const int t = reversed ? count - 1 - i : i;
      if (of_block[t].state == State::ready) resume(block, t), advanced = true;
    }
    bool released = false;
    if (!release_warps(of_block, count, released)) return false;
    if (!released && !release_barrier(of_block, count) && !release_conditions(of_block, count)) break;
  }
  bool ended = true;
  for (int t = 0; t < count; t++) ended = ended && of_block[t].state == State::ended;
  if (ended && !cluster[block].ended) {  // its shared memory is gone
    cluster[block].ended = true;
    memset(cluster[block].shared, 0xff, dynamic_bytes);
  }
  return true;
}

// ---- the blocks of a cluster ----------------------------------------------------------------------------------------

// Lets the threads at the cluster's barrier go, once all that have not ended have arrived there.
inline bool release_cluster_barrier(int count) {
  bool alive = false;
  for (size_t b = 0; b < cluster.size(); b++)
    for (int t = 0; t < count; t++) {
      const Thread& thread = threads[first_thread(static_cast<int>(b)) + t];
      if (thread.state == State::ended) continue;
      if (thread.arrived != cluster_phase) return false;
      alive = true;
    }
  if (!alive) return false;
  cluster_phase++;
  for (Thread& thread : threads)
    if (thread.state == State::at_cluster_barrier) thread.state = State::ready;
  return true;
}

inline bool run_cluster(int count) {
  const int blocks = static_cast<int>(cluster.size());
  cluster_phase = 0;
  for (Thread& thread : threads) thread.state = State::ended;
  for (int b = 0; b < blocks; b++) {
    memset(cluster[b].shared, 0xff, dynamic_bytes);  // NaN where nothing was written
    for (int t = 0; t < count; t++) make_ready(threads[first_thread(b) + t]);
  }
  while (true) {
    bool advanced = false;
    for (int i = 0; i < blocks; i++)
      if (!advance(reversed ? blocks - 1 - i : i, count, advanced)) return false;
    if (advanced || release_cluster_barrier(count) || background()) continue;
    int number[6] = {};
    for (const Thread& thread : threads) number[static_cast<int>(thread.state)]++;
    const int at_barrier = number[static_cast<int>(State::at_barrier)],
              in_warp = number[static_cast<int>(State::in_warp)],
              at_condition = number[static_cast<int>(State::at_condition)],
              at_cluster_barrier = number[static_cast<int>(State::at_cluster_barrier)];
    if (at_barrier + in_warp + at_condition + at_cluster_barrier == 0) return true;
    error = "deadlock: " + std::to_string(at_barrier) + " threads wait at __syncthreads, " + std::to_string(in_warp) +
            " for other lanes of their warp" +
            (at_condition ? ", " + std::to_string(at_condition) + " for a condition" : "") +
            (at_cluster_barrier ? ", " + std::to_string(at_cluster_barrier) + " for other blocks" : "");
    return false;
  }
}

// ---- one launch -----------------------------------------------------------------------------------------------------

inline void on_fault(int, siginfo_t* info, void*) {
  fault_address = info->si_addr;
  siglongjmp(fault, 1);
}

inline bool run_blocks(dim3 grid, dim3 block, int in_cluster) {
  gridDim = grid;
  blockDim = block;
  const int64_t count = grid.count() / in_cluster;
  for (int64_t i = 0; i < count; i++) {
    cluster.clear();
    for (int rank = 0; rank < in_cluster; rank++) {
      const int64_t b = (reversed ? count - 1 - i : i) * in_cluster + rank;
      const dim3 index(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
      cluster.push_back({index, shared_memories[rank], false});
    }
    if (!run_cluster(static_cast<int>(block.count()))) return false;
  }
  return true;
}

inline size_t most_shared_bytes(const void* kernel) {
  const auto found = allowed_shared_bytes.find(kernel);
  return found == allowed_shared_bytes.end() ? SHARED_BYTES : found->second;
}

inline int most_cluster_blocks(const void* kernel) {
  return allowed_large_clusters[kernel] ? MOST_CLUSTER_BLOCKS : PORTABLE_CLUSTER_BLOCKS;
}

inline cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, int in_cluster) {
  error.clear();
  if (grid.count() < 1 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || block.count() < 1 ||
      block.count() > 1024 || block.z > 64 || shared_bytes > most_shared_bytes(kernel) || in_cluster < 1 ||
      in_cluster > most_cluster_blocks(kernel) || grid.x % in_cluster) {
    error = name_of(kernel) + ": grid " + text(grid) + ", block " + text(block) + " cannot be launched";
    if (in_cluster != 1) error += " in clusters of " + std::to_string(in_cluster);
    return cudaErrorInvalidConfiguration;
  }
  blockDim = block;
  if (static_cast<int>(threads.size()) < first_thread(in_cluster)) threads.resize(first_thread(in_cluster));
  struct sigaction action = {}, before;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
  bool good = false;
  failure = nullptr;
  dynamic_bytes = shared_bytes;
  while_running(true);
  if (sigsetjmp(fault, 1) == 0) {
    good = run_blocks(grid, block, in_cluster);
  } else {
    char address[32];
    snprintf(address, sizeof address, "%p", fault_address);
    error = failure ? failure : std::string("access to protected memory at ") + address;
  }
  sigaction(SIGSEGV, &before, nullptr);
  while_running(false);
  launched[name_of(kernel)]++;
  if (good) return cudaSuccess;
  for (Thread& t : threads) t.started = false;  // they were left somewhere in the kernel
  error = name_of(kernel) + ", block " + text(blockIdx) + ", thread " + text(threadIdx) + ": " + error;
  return cudaErrorLaunchFailure;
}

inline void fail(const char* message) {
  failure = message;
  siglongjmp(fault, 1);
}

// A copy to shared memory is made at the earliest moment, and backwards at the latest one.
inline void wait_for_copies() {
  std::vector<Copy>& copies = threads[running].copies;
  for (const Copy& copy : copies) memcpy(copy.to, copy.from, copy.bytes);
  copies.clear();
}
inline void begin_copy(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    fail("a copy to shared memory that is not aligned");
  threads[running].copies.push_back({to, from, bytes});
  if (!reversed) wait_for_copies();
}

// The barrier of the blocks of a cluster: a thread arrives, may go on, and waits for all others.
inline void arrive_at_cluster_barrier() {
  if (threads[running].cluster_waits == left_out) return;
  if (threads[running].arrived >= 0) fail("a second arrival at the cluster's barrier without waiting");
  threads[running].arrived = cluster_phase;
}
inline void wait_at_cluster_barrier() {
  if (threads[running].cluster_waits++ == left_out) return;
  if (threads[running].arrived < 0) fail("waiting at the cluster's barrier without an arrival");
  if (threads[running].arrived == cluster_phase) wait(State::at_cluster_barrier);
  threads[running].arrived = -1;
}

// What lies in another block's shared memory where `own` lies in that of the block that runs.
inline void* in_peer(const void* own, int rank) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(own) - shared_memory;
  if (offset < 0 || offset > static_cast<ptrdiff_t>(dynamic_bytes)) fail("no address in the block's shared memory");
  if (rank < 0 || rank >= static_cast<int>(cluster.size())) fail("a block that the cluster does not have");
  if (cluster[rank].ended) fail("the shared memory of a block that has ended");
  return cluster[rank].shared + offset;
}

template <class T>
T exchange(uint32_t mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  Thread& self = threads[running];
  self.mask = mask;
  self.source = source;
  memcpy(&self.given, &value, sizeof(T));
  wait(State::in_warp);
  memcpy(&value, &threads[running].taken, sizeof(T));
  return value;
}

}  // namespace simt

// ---- what kernels call ----------------------------------------------------------------------------------------------

inline void __syncthreads() { simt::wait(simt::State::at_barrier); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { simt::exchange(mask, 0, simt::running % simt::WARP); }
template <class T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return simt::exchange(mask, value, source % simt::WARP);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return simt::exchange(mask, value, (simt::running % simt::WARP) ^ bits);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int distance) {
  const int lane = simt::running % simt::WARP;
  return simt::exchange(mask, value, lane + distance < simt::WARP ? lane + distance : lane);
}

// ---- what launchers call --------------------------------------------------------------------------------------------

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 10
};

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int64_t value) {
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed)
    return simt::allowed_large_clusters[kernel] = value, cudaSuccess;
  if (value > static_cast<int64_t>(simt::MOST_SHARED_BYTES)) return cudaErrorInvalidValue;
  simt::allowed_shared_bytes[kernel] = value;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const void* symbol = reinterpret_cast<const void*>(kernel);
  int cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const auto& size = config->attrs[i].val.clusterDim;
    if (config->attrs[i].id != cudaLaunchAttributeClusterDimension || size.y != 1 || size.z != 1)
      return cudaErrorNotSupported;
    cluster = static_cast<int>(size.x);
  }
  if (simt::recording) {
    simt::Launch launch{simt::name_of(symbol),    config->gridDim, config->blockDim,
                        config->dynamicSmemBytes, cluster,         {}};
    [[maybe_unused]] auto keep = [&](auto value) {
      launch.arguments.emplace_back(reinterpret_cast<const char*>(&value), sizeof value);
    };
    (keep(static_cast<Parameters>(arguments)), ...);
    simt::recorded.push_back(launch);
    return cudaSuccess;
  }
  const auto with = [=](dim3 grid, dim3 block, size_t bytes, const std::tuple<std::decay_t<Parameters>...>& values) {
    return [=] {
      simt::body = [=] { std::apply(kernel, values); };
      return simt::launch(symbol, grid, block, bytes, cluster);
    };
  };
  const auto run = with(config->gridDim, config->blockDim, config->dynamicSmemBytes, {arguments...});
  const auto with_pointers = [=](dim3 grid, dim3 block, size_t bytes, void** pointers) {
    [[maybe_unused]] const auto next = [&] { return *pointers++; };
    return with(grid, block, bytes, {*static_cast<std::decay_t<Parameters>*>(next())...});
  };
  return simt::postpone(config->stream, {run, symbol, with_pointers}) ? cudaSuccess : run();
}
