// torch's device "cuda:0" where there is none: its tensors are memory of the host that only emulated kernels and the
// operators below may touch, its current stream is a number, and whoever waits for it is counted.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>

#include "runtime.h"

namespace {

using at::Tensor;
using torch::jit::Stack;

const c10::Device DEVICE(c10::kCUDA, 0);
thread_local c10::StreamId current_stream = 0;
bool has_pool;                      // for what is allocated in a capture, as torch's own captures have
int64_t waits, launches_elsewhere;  // elsewhere: not on torch's current stream

c10::Stream stream(c10::StreamId number) { return c10::Stream(c10::Stream::UNSAFE, DEVICE, number); }
cudaStream_t native(c10::StreamId stream) { return reinterpret_cast<cudaStream_t>(stream); }
bool is_capturing() { return simt::is_captured(native(current_stream)); }

// ---- memory ---------------------------------------------------------------------------------------------------------

// Protected but while it is open. What is in memory before anybody wrote there is NaN, and so it becomes when it is
// freed.
class Memory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK(!is_capturing() || has_pool, "emulator: expected no allocation for a graph that is captured, got ",
                bytes, " bytes");
    TORCH_CHECK(simt::refused != "allocate", "emulator: out of memory, as asked");
    const size_t size = (std::max<size_t>(bytes, 1) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t begin = 0;  // the first gap that is wide enough
    for (const auto& [used, length] : blocks_) {
      if (used - begin >= size) break;
      begin = used + length;
    }
    TORCH_CHECK(begin + size <= MOST, "emulator: out of memory");
    blocks_[begin] = size;
    fill(begin, size);
    return {base_ + begin, base_ + begin, &free, DEVICE};
  }
  void copy_data(void*, const void*, size_t) const override { TORCH_CHECK(false, "emulator: no copies of storages"); }

  void open(bool on) {
    opened_ += on ? 1 : -1;
    if (opened_ == (on ? 1 : 0)) mprotect(base_, MOST, on ? PROT_READ | PROT_WRITE : PROT_NONE);
  }

 private:
  static constexpr size_t ALIGNMENT = 512, MOST = size_t(512) << 20;

  void fill(size_t begin, size_t size) {
    open(true);
    memset(base_ + begin, 0xff, size);
    open(false);
  }
  static void free(void* context);

  // Whole huge pages: protection changes at every launch, page by page.
  static char* reserve() {
    constexpr size_t PAGE = size_t(2) << 20;
    void* mapped = mmap(nullptr, MOST + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char* base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(mapped) + PAGE - 1) / PAGE * PAGE);
    madvise(base, MOST, MADV_HUGEPAGE);
    return base;
  }

  char* base_ = reserve();
  std::map<size_t, size_t> blocks_;
  int opened_ = 0;
};

Memory& memory() {
  static auto* const all = new Memory;  // outlives tensors that are freed when the process ends
  return *all;
}

void Memory::free(void* context) {
  if (is_capturing()) return;  // the graph may use it
  Memory& m = memory();
  const size_t begin = static_cast<size_t>(static_cast<char*>(context) - m.base_);
  m.fill(begin, m.blocks_.at(begin));
  m.blocks_.erase(begin);
}

struct Open {
  Open() { memory().open(true); }
  ~Open() { memory().open(false); }
};

// ---- streams --------------------------------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return stream(current_stream); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override {
    static c10::StreamId last = 1000;
    return stream(++last);
  }
  c10::Stream exchangeStream(c10::Stream to) const override { return stream(std::exchange(current_stream, to.id())); }
  void* getStreamNativeHandle(const c10::Stream of) const override { return native(of.id()); }
  void synchronizeStream(const c10::Stream&) const override { waits++; }
  void synchronizeDevice(c10::DeviceIndex) const override { waits++; }
};

// ---- torch's operators ----------------------------------------------------------------------------------------------

constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::CUDA), CPU_KEYS(c10::DispatchKey::CPU);

// The memory of a tensor of the device as a tensor of the CPU's.
Tensor on_cpu(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  return at::for_blob(const_cast<void*>(t.const_data_ptr()), t.sizes())
      .strides(t.strides())
      .options(at::device(at::kCPU).dtype(t.scalar_type()))
      .make_tensor();
}

Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &memory(), KEYS, dtype.value_or(at::kFloat), format);
}
Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &memory(), KEYS, dtype.value_or(at::kFloat));
}

// Now, or when the graph is launched that is captured.
void enqueue(std::function<void()> work) {
  const auto run = [work = std::move(work)] {
    Open open;
    work();
    return cudaSuccess;
  };
  if (!simt::postpone(native(current_stream), {run})) run();
}

void wait() {
  TORCH_CHECK(!is_capturing(), "emulator: expected nobody to wait for a graph that is captured");
  waits++;
}

Tensor& copy(Tensor& to, const Tensor& from, bool non_blocking) {
  if (!to.is_cuda() || (!from.is_cuda() && !non_blocking)) wait();
  enqueue([to, from] { on_cpu(to).copy_(on_cpu(from)); });
  return to;
}

at::Scalar item(const Tensor& t) {
  wait();
  Open open;
  return on_cpu(t).item();
}

// Any other operator: the CPU's, on the same memory.
void as_on_cpu(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  const std::vector<c10::IValue> given(stack->begin() + static_cast<int64_t>(first), stack->end());
  const auto run = [op, given](Stack& arguments) {
    for (const c10::IValue& value : given) {
      c10::IValue argument = value;
      if (value.isTensor()) argument = on_cpu(value.toTensor());
      if (value.isDevice()) argument = at::Device(at::kCPU);
      arguments.push_back(std::move(argument));
    }
    op.redispatchBoxed(CPU_KEYS, &arguments);
  };
  stack->resize(first);
  const bool writes = std::any_of(schema.arguments().begin(), schema.arguments().end(),
                                  [](const auto& a) { return a.alias_info() && a.alias_info()->isWrite(); });
  TORCH_CHECK(writes || !is_capturing(), "emulator: expected no operator with a new result in a graph, got ",
              schema.name());
  if (writes) {
    enqueue([run] {
      Stack arguments;
      run(arguments);
    });
    for (size_t i = 0; i < count; i++)
      if (schema.arguments()[i].alias_info()) stack->push_back(given[i]);
    return;
  }
  Open open;
  Stack results;
  simt::sent++;
  run(results);
  for (const c10::IValue& result : results) {
    if (!result.isTensor()) {
      stack->push_back(result);
      continue;
    }
    const Tensor& t = result.toTensor();
    Tensor made = at::detail::empty_strided_generic(t.sizes(), t.strides(), &memory(), KEYS, t.scalar_type());
    on_cpu(made).copy_(t);
    stack->push_back(made);
  }
}

// ---- for the tests --------------------------------------------------------------------------------------------------

int64_t launches() {
  int64_t total = 0;
  for (const auto& [name, count] : simt::launched) total += count;
  return total;
}

cudaGraph_t users_graph = simt::new_graph();

const bool prepared = [] {
  c10::SetAllocator(c10::kCUDA, &memory());
  simt::while_running = [](bool on) { memory().open(on); };
  simt::postpone = [before = simt::postpone](cudaStream_t stream, simt::Work work) {
    launches_elsewhere += stream != native(current_stream);
    return before(stream, std::move(work));
  };
  return true;
}();

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("copy_", &copy);
  m.impl("_local_scalar_dense", &item);
  m.impl("record_stream", [](Tensor&, c10::Stream) {});
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&as_on_cpu>()); }

TORCH_LIBRARY(pytorch_ext_emulator, m) {
  m.def("waits() -> int", [] { return waits; });
  m.def("launches() -> int", &launches);
  m.def("launches_elsewhere() -> int", [] { return launches_elsewhere; });
  m.def("graph_launches() -> int", [] { return simt::graph_launches; });
  m.def("captures() -> int", [] { return static_cast<int64_t>(simt::captures); });
  m.def("graphs_alive() -> int", [] { return static_cast<int64_t>(simt::graphs.size()); });
  m.def("sent() -> int", [] { return simt::sent; });
  m.def("refuse(str function) -> ()", [](std::string function) { simt::refused = std::move(function); });
  m.def("set_reversed(bool on) -> ()", [](bool on) { simt::reversed = on; });
  m.def("set_stream(int number) -> ()", [](int64_t number) { current_stream = number; });
  m.def("begin_capture() -> ()", [] {
    has_pool = true;
    TORCH_CHECK(cudaStreamBeginCapture(native(current_stream), cudaStreamCaptureModeGlobal) == cudaSuccess);
  });
  m.def("end_capture() -> ()", [] {
    has_pool = false;
    cudaGraphDestroy(users_graph);
    TORCH_CHECK(cudaStreamEndCapture(native(current_stream), &users_graph) == cudaSuccess);
  });
  m.def("replay() -> ()", [] { TORCH_CHECK(cudaGraphLaunch(users_graph, native(current_stream)) == cudaSuccess); });
}
