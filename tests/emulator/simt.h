// A SIMT emulator: CUDA kernels, compiled by a C++ compiler from their own source, run on the host.
//
// Every thread of a block is a fiber with a stack of its own. It runs until it waits (at a barrier, for its warp, or
// for a condition) or ends; when no thread can run, those whose wait is over are released. Blocks run one after the
// other, so that shared memory is static memory. The schedule goes forwards, or with `reversed` backwards through
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

enum class State { ready, at_barrier, in_warp, at_condition, ended };

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
  std::vector<Copy> copies;         // begun, and not yet waited for
};

struct Launch {        // what a launch asked for, kept in `recorded` instead of being run
  std::string kernel;  // the symbol's name
  dim3 grid, block;
  size_t shared_bytes;
  std::vector<std::string> arguments;  // their bytes
};

inline bool reversed = false, recording = false;
inline std::vector<Launch> recorded;
inline std::string error;
inline std::map<std::string, int64_t> launched;  // how often, by the kernel's name

inline std::vector<Thread> threads;
inline int running;  // the thread that runs
inline jmp_buf scheduler;
inline sigjmp_buf fault;
inline void* fault_address;
inline const char* failure;  // of the kernel's own requirements, or null
inline std::function<void()> body;
// Does a piece of what threads have begun and do not do themselves; false where nothing is left of it.
inline std::function<bool()> background = [] { return false; };
alignas(128) inline unsigned char shared_memory[MOST_SHARED_BYTES];
inline size_t dynamic_bytes;  // of this launch
// Told before a kernel runs (true) and after it: memory may be the device's alone.
inline std::function<void(bool)> while_running = [](bool) {};
// Takes a launch that is to run later, when work on its stream is recorded for a graph; else it answers false.
inline std::function<bool(cudaStream_t, std::function<cudaError_t()>)> postpone =
    [](cudaStream_t, const std::function<cudaError_t()>&) { return false; };
inline std::map<const void*, size_t> allowed_shared_bytes;  // of kernels that have asked for more than SHARED_BYTES

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
  t.copies.clear();
  if (t.started) return;
  if (!t.stack) t.stack = std::make_unique<char[]>(STACK_BYTES);
  getcontext(&t.start);
  t.start.uc_stack = {t.stack.get(), 0, STACK_BYTES};
  t.start.uc_link = nullptr;
  makecontext(&t.start, thread_body, 0);
}

// Runs thread t until it waits or ends.
__attribute__((noinline)) inline void resume(int t) {
  running = t;
  threadIdx = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
  if (_setjmp(scheduler)) return;
  if (threads[t].started) _longjmp(threads[t].here, 1);
  threads[t].started = true;
  setcontext(&threads[t].start);
}

// ---- one block ------------------------------------------------------------------------------------------------------

// Lets the threads of every warp operation go whose lanes have all come. False with an error in `error`.
inline bool release_warps(int count, bool& released) {
  for (int t = 0; t < count; t++) {
    if (threads[t].state != State::in_warp) continue;
    const int first = t / WARP * WARP;
    const uint32_t mask = threads[t].mask;
    bool complete = true;
    for (int l = 0; l < WARP && first + l < count; l++) {
      if (!(mask >> l & 1)) continue;
      const Thread& other = threads[first + l];
      if (other.state == State::ended)
        return error = "lane " + std::to_string(l) + " has ended and cannot take part in a warp operation", false;
      complete = complete && other.state == State::in_warp && other.mask == mask;
    }
    if (!complete) continue;
    for (int l = 0; l < WARP && first + l < count; l++) {
      if (!(mask >> l & 1)) continue;
      Thread& thread = threads[first + l];
      if (first + thread.source >= count || !(mask >> thread.source & 1))
        return error = "a shuffle reads lane " + std::to_string(thread.source) + ", which takes no part", false;
      thread.taken = threads[first + thread.source].given;
    }
    for (int l = 0; l < WARP && first + l < count; l++)
      if (mask >> l & 1) threads[first + l].state = State::ready;
    released = true;
  }
  return true;
}

inline bool release_barrier(int count) {
  for (int t = 0; t < count; t++)
    if (threads[t].state != State::at_barrier && threads[t].state != State::ended) return false;
  for (int t = 0; t < count; t++)
    if (threads[t].state == State::at_barrier) threads[t].state = State::ready;
  return true;
}

inline bool release_conditions(int count) {
  bool released = false;
  for (int t = 0; t < count; t++)
    if (threads[t].state == State::at_condition && threads[t].condition())
      threads[t].state = State::ready, released = true;
  return released;
}

inline bool run_block(int count) {
  memset(shared_memory, 0xff, dynamic_bytes);  // NaN where nothing was written
  for (int t = 0; t < count; t++) make_ready(threads[t]);
  while (true) {
    for (int i = 0; i < count; i++) {
      const int t = reversed ? count - 1 - i : i;
      if (threads[t].state == State::ready) resume(t);
    }
    int number[5] = {};
    for (int t = 0; t < count; t++) number[static_cast<int>(threads[t].state)]++;
    const int at_barrier = number[static_cast<int>(State::at_barrier)],
              in_warp = number[static_cast<int>(State::in_warp)],
              at_condition = number[static_cast<int>(State::at_condition)];
    if (at_barrier + in_warp + at_condition == 0) return true;
    bool released = false;
    if (!release_warps(count, released)) return false;
    if (released || release_barrier(count) || release_conditions(count) || background()) continue;
    error = "deadlock: " + std::to_string(at_barrier) + " threads wait at __syncthreads, " + std::to_string(in_warp) +
            " for other lanes of their warp" +
            (at_condition ? ", " + std::to_string(at_condition) + " for a condition" : "");
    return false;
  }
}

// ---- one launch -----------------------------------------------------------------------------------------------------

inline void on_fault(int, siginfo_t* info, void*) {
  fault_address = info->si_addr;
  siglongjmp(fault, 1);
}

inline bool run_blocks(dim3 grid, dim3 block) {
  gridDim = grid;
  blockDim = block;
  const int64_t count = grid.count();
  for (int64_t i = 0; i < count; i++) {
    const int64_t b = reversed ? count - 1 - i : i;
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    if (!run_block(static_cast<int>(block.count()))) return false;
  }
  return true;
}

inline size_t most_shared_bytes(const void* kernel) {
  const auto found = allowed_shared_bytes.find(kernel);
  return found == allowed_shared_bytes.end() ? SHARED_BYTES : found->second;
}

inline cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  error.clear();
  if (grid.count() < 1 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || block.count() < 1 ||
      block.count() > 1024 || block.z > 64 || shared_bytes > most_shared_bytes(kernel)) {
    error = name_of(kernel) + ": grid " + text(grid) + ", block " + text(block) + " cannot be launched";
    return cudaErrorInvalidConfiguration;
  }
  if (threads.size() < static_cast<size_t>(block.count())) threads.resize(block.count());
  struct sigaction action = {}, before;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
  bool good = false;
  failure = nullptr;
  dynamic_bytes = shared_bytes;
  while_running(true);
  if (sigsetjmp(fault, 1) == 0) {
    good = run_blocks(grid, block);
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

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int64_t bytes) {
  if (bytes > static_cast<int64_t>(simt::MOST_SHARED_BYTES)) return cudaErrorInvalidValue;
  simt::allowed_shared_bytes[kernel] = bytes;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const void* symbol = reinterpret_cast<const void*>(kernel);
  if (simt::recording) {
    simt::Launch launch{simt::name_of(symbol), config->gridDim, config->blockDim, config->dynamicSmemBytes, {}};
    [[maybe_unused]] auto keep = [&](auto value) {
      launch.arguments.emplace_back(reinterpret_cast<const char*>(&value), sizeof value);
    };
    (keep(static_cast<Parameters>(arguments)), ...);
    simt::recorded.push_back(launch);
    return cudaSuccess;
  }
  const auto run = [=, shape = *config] {
    simt::body = [=] { kernel(arguments...); };
    return simt::launch(symbol, shape.gridDim, shape.blockDim, shape.dynamicSmemBytes);
  };
  return simt::postpone(config->stream, run) ? cudaSuccess : run();
}
