#include "new_tensors.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pytorch_ext {
namespace {

#if defined(__linux__) && defined(MADV_HUGEPAGE) && defined(MADV_FREE)

constexpr size_t PAGE = size_t(2) << 20, GRAIN = size_t(64) << 10, DEFAULT_KEPT_MEGABYTES = 256;

// So much of what nobody uses keeps its pages whatever happens, as malloc's heap does. Marking a block for the system
// interrupts every processor the process runs on: 40 us of the 80 that relu of 4 MB took on two threads.
constexpr size_t HELD_BYTES = size_t(64) << 20;

struct Block {
  void* data;
  size_t bytes;
  bool is_held;
};

// Blocks nobody uses, the longest unused first. All but the held ones are marked: the system may take their pages back
// whenever it is short of memory.
class KeptBlocks {
 public:
  // The smallest block that fits and is not much larger, the last used of several; without data where there is none.
  Block take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto best = blocks_.end();
    for (auto b = blocks_.begin(); b != blocks_.end(); ++b)
      if (b->bytes >= bytes && b->bytes <= bytes + bytes / 4 && (best == blocks_.end() || b->bytes <= best->bytes))
        best = b;
    if (best == blocks_.end()) return {};
    Block found = *best;
    blocks_.erase(best);
    forget(found);
    return found;
  }

  void keep(Block block) {
    std::lock_guard<std::mutex> lock(mutex_);
    block.is_held = true;
    blocks_.push_back(block);
    bytes_ += block.bytes;
    held_bytes_ += block.bytes;
    shrink_to(most_);
    for (auto b = blocks_.begin(); held_bytes_ > HELD_BYTES; ++b)
      if (std::exchange(b->is_held, false)) {
        madvise(b->data, b->bytes, MADV_FREE);
        held_bytes_ -= b->bytes;
      }
  }

  void free() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink_to(0);
  }

 private:
  void shrink_to(size_t most) {
    while (bytes_ > most) {
      munmap(blocks_.front().data, blocks_.front().bytes);
      forget(blocks_.front());
      blocks_.erase(blocks_.begin());
    }
  }
  void forget(const Block& block) {
    bytes_ -= block.bytes;
    if (block.is_held) held_bytes_ -= block.bytes;
  }
  static size_t megabytes() {
    const char* text = std::getenv("PYTORCH_EXT_KEEP_MB");
    return text ? std::strtoull(text, nullptr, 10) : DEFAULT_KEPT_MEGABYTES;
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t bytes_ = 0, held_bytes_ = 0;
  const size_t most_ = megabytes() << 20;
};

KeptBlocks& kept() {
  static auto* blocks = new KeptBlocks;  // outlives tensors that are freed when the process ends
  return *blocks;
}

// In huge pages, as far as they are whole and the system has some.
Block map(size_t bytes) {
  void* mapped = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return {};
  auto* begin = static_cast<char*>(mapped);
  const size_t before = (PAGE - reinterpret_cast<uintptr_t>(begin) % PAGE) % PAGE;
  if (before) munmap(begin, before);
  if (before < PAGE) munmap(begin + before + bytes, PAGE - before);
  madvise(begin + before, bytes, MADV_HUGEPAGE);
  return {begin + before, bytes, false};
}

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->data);
  kept().keep(*block);
  delete block;
}

class LargeAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t whole = (bytes + GRAIN - 1) / GRAIN * GRAIN;
    Block block = kept().take(whole);
    if (!block.data) block = map(whole);
    if (!block.data) return c10::GetCPUAllocator()->allocate(bytes);  // torch's own error, where memory is out
    c10::profiledCPUMemoryReporter().New(block.data, block.bytes);
    return {block.data, new Block(block), &release, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

c10::Allocator* large_allocator() {
  static LargeAllocator large;
  return &large;
}
void free_kept() { kept().free(); }

#else
constexpr size_t PAGE = SIZE_MAX;
c10::Allocator* large_allocator() { return nullptr; }
void free_kept() {}
#endif

// Blocks of a cache line, for losses and the like, which a thread keeps: aligned memory costs malloc more time than a
// small kernel takes.
class SmallBlocks {
 public:
  static constexpr size_t BYTES = 64;
  static constexpr int MOST = 32;

  ~SmallBlocks() {
    while (count_ > 0) std::free(blocks_[--count_]);
    count_ = MOST;  // what is freed later is not kept
  }
  void* take() { return 0 < count_ && count_ < MOST ? blocks_[--count_] : std::aligned_alloc(BYTES, BYTES); }
  void keep(void* block) {
    if (count_ < MOST - 1)
      blocks_[count_++] = block;
    else
      std::free(block);
  }

 private:
  void* blocks_[MOST];
  int count_ = 0;
};
thread_local SmallBlocks small_blocks;

void release_small(void* block) {
  c10::profiledCPUMemoryReporter().Delete(block);
  small_blocks.keep(block);
}

class SmallAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* block = bytes <= SmallBlocks::BYTES ? small_blocks.take() : nullptr;  // resize_() may ask for more
    if (!block) return c10::GetCPUAllocator()->allocate(bytes);
    c10::profiledCPUMemoryReporter().New(block, SmallBlocks::BYTES);
    return {block, block, &release_small, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

c10::Allocator* allocator_for(size_t bytes) {
  static SmallAllocator small;
  if (0 < bytes && bytes <= SmallBlocks::BYTES) return &small;
  return bytes >= PAGE ? large_allocator() : c10::GetCPUAllocator();
}

// Whether torch wants to fill what is new: then it has to make it.
bool torch_fills() {
  return at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory();
}

constexpr c10::DispatchKeySet CPU_KEYS(c10::DispatchKey::CPU);

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, const at::Tensor& like, std::optional<at::ScalarType> dtype) {
  const at::ScalarType type = dtype.value_or(like.scalar_type());
  if (!like.is_cpu() || torch_fills()) return at::empty(sizes, like.options().dtype(type).memory_format(std::nullopt));
  const auto bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * c10::elementSize(type);
  return at::detail::empty_generic(sizes, allocator_for(bytes), CPU_KEYS, type, std::nullopt);
}

at::Tensor new_like(const at::Tensor& like) {
  if (!like.is_cpu() || torch_fills()) return at::empty_like(like);
  at::DimVector strides(like.strides());
  if (!like.is_non_overlapping_and_dense()) {
    const auto dense = at::infer_dense_strides(like.sizes(), like.strides());
    strides.assign(dense.begin(), dense.end());
  }
  const auto bytes = static_cast<size_t>(like.numel()) * like.itemsize();
  return at::detail::empty_strided_generic(like.sizes(), strides, allocator_for(bytes), CPU_KEYS, like.scalar_type());
}

void free_kept_memory() { free_kept(); }

}  // namespace pytorch_ext
