// A device named npu that is this machine's memory: allocator, guard, generator, hooks, and the few operators that are
// about memory and not arithmetic. Everything else is kernels.cpp.
//
// What a chip's plugin has to register, and no more; names of the hooks are torch's (ATen/detail).
#include "kernels.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <vector>

namespace npusim {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;

static const DeviceIndex cards = [] {
  const char* wanted = std::getenv("NPUSIM_CARDS");
  return static_cast<DeviceIndex>(wanted ? std::atoi(wanted) : 2);
}();
static thread_local DeviceIndex current = 0;

static DeviceIndex checked(DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < cards, "npusim: there is no npu:", int(index), ", there are ", int(cards));
  return index;
}

static Device device_of(std::optional<Device> wanted) {
  return Device(NPU, wanted && wanted->has_index() ? checked(wanted->index()) : current);
}

// ---------------------------------------------------------------------------------------------------- memory

static std::atomic<int64_t> held{0}, peak{0};  // bytes, of all cards

struct Block {
  void* bytes;
  size_t size;
};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* bytes = nullptr;
    TORCH_CHECK(posix_memalign(&bytes, 64, std::max<size_t>(size, 64)) == 0, "NPU out of memory (simulated)");
    const int64_t now = held += size;
    for (int64_t most = peak; now > most && !peak.compare_exchange_weak(most, now);) {
    }
    return {bytes, new Block{bytes, size}, &release, Device(NPU, current)};
  }
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    held -= block->size;
    std::free(block->bytes);
    delete block;
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
};

static Memory memory;
REGISTER_ALLOCATOR(NPU, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = NPU;
  c10::DeviceType type() const override { return NPU; }
  Device getDevice() const override { return Device(NPU, current); }
  void setDevice(Device d) const override { current = d.has_index() ? checked(d.index()) : current; }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.has_index() ? d.index() : current; }
  Device exchangeDevice(Device d) const override {
    const Device before = getDevice();
    setDevice(d);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return cards; }
  // One stream, on which all is done when it is asked for.
  c10::Stream getStream(Device d) const override { return c10::Stream(c10::Stream::DEFAULT, device_of(d)); }
  c10::Stream getDefaultStream(Device d) const override { return getStream(d); }
  c10::Stream getStreamFromGlobalPool(Device d, bool = false) const override { return getStream(d); }
  c10::Stream getNewStream(Device d, int = 0) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return getStream(s.device()); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  void record(void** event, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = std::malloc(1);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { std::free(event); }
  void synchronizeEvent(void*) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ------------------------------------------------------------------------------------------------ random state

// A seed and how far it has been used, 16 bytes of state as torch_npu keeps them.
struct Generator final : c10::GeneratorImpl {
  uint64_t start = c10::detail::getNonDeterministicRandom(), used = 0;

  explicit Generator(DeviceIndex index)
      : c10::GeneratorImpl(Device(NPU, index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {}
  static c10::DeviceType device_type() { return NPU; }
  void set_current_seed(uint64_t value) override { start = value, used = 0; }
  uint64_t current_seed() const override { return start; }
  void set_offset(uint64_t value) override { used = value; }
  uint64_t get_offset() const override { return used; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return start;
  }
  void set_state(const c10::TensorImpl& state) override {
    TORCH_CHECK(state.numel() == 16, "npusim: a random state of an npu has 16 bytes, found ", state.numel());
    const auto* words = static_cast<const uint64_t*>(state.data());
    start = words[0], used = words[1];
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto state = at::detail::empty_cpu({16}, at::kByte);
    auto* words = static_cast<uint64_t*>(state.mutable_data_ptr());
    words[0] = start, words[1] = used;
    return state.getIntrusivePtr();
  }
  Generator* clone_impl() const override {
    auto* copy = new Generator(device().index());
    copy->start = start, copy->used = used;
    return copy;
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return cards > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return cards; }
  void setCurrentDevice(DeviceIndex index) const override { current = checked(index); }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return std::exchange(current, checked(index)); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? current : exchangeDevice(index);
  }
  Device getDeviceFromPtr(void*) const override { return Device(NPU, current); }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override {
    static const std::vector<at::Generator> each = [] {
      std::vector<at::Generator> made;
      for (DeviceIndex card = 0; card < cards; ++card) made.push_back(at::make_generator<Generator>(card));
      return made;
    }();
    return each[index < 0 ? current : checked(index)];
  }
  at::Generator getNewGenerator(DeviceIndex index) const override {
    return at::make_generator<Generator>(index < 0 ? current : checked(index));
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto fresh = memory.allocate(size);
    const size_t kept = std::min(size, impl->nbytes());
    if (kept && impl->data()) std::memcpy(fresh.get(), impl->data(), kept);
    impl->set_data_ptr(std::move(fresh));
    impl->set_nbytes(size);
  }
};

static Hooks hooks;
static const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

// --------------------------------------------------------------------------------- operators that are about memory

static std::atomic<bool> no_float64{false};
static const c10::DispatchKeySet on_npu(c10::DispatchKey::PrivateUse1);

// The real device makes float32 of float64 and says so once; here it can be made to stop.
static void check_type(at::ScalarType type, size_t dimensions) {
  TORCH_CHECK(!no_float64 || type != at::kDouble || dimensions == 0,
              "npusim: a float64 tensor on an NPU, which would silently become float32");
}

static Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                    std::optional<Device> device, std::optional<bool> pinned,
                    std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "Only dense CPU tensors can be pinned");
  check_type(c10::dtype_or_default(type), sizes.size());
  const c10::DeviceGuard there(device_of(device));
  return at::detail::empty_generic(sizes, &memory, on_npu, c10::dtype_or_default(type), format);
}

static Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> type,
                            std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  check_type(c10::dtype_or_default(type), sizes.size());
  const c10::DeviceGuard there(device_of(device));
  return at::detail::empty_strided_generic(sizes, strides, &memory, on_npu, c10::dtype_or_default(type));
}

static Tensor host_of(const Tensor& t) { return t.device().type() == NPU ? on_host(t) : t; }

static Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  host_of(to).copy_(host_of(from), non_blocking);
  return to;
}

static Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

static c10::Scalar local_scalar(const Tensor& t) { return on_host(t).item(); }

static Tensor& set_range(Tensor& result, at::Storage storage, int64_t offset, at::IntArrayRef sizes,
                         at::IntArrayRef strides) {
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  const auto dense = c10::contiguous_strides(sizes);
  impl->set_sizes_and_strides(sizes, strides.empty() ? at::IntArrayRef(dense) : strides, offset);
  return result;
}

static Tensor& set_whole(Tensor& result, at::Storage storage) {
  const int64_t count = storage.nbytes() / result.dtype().itemsize();
  return set_range(result, std::move(storage), 0, {count}, {1});
}

static Tensor& set_nothing(Tensor& result) {
  return set_range(result, at::empty({0}, result.options()).storage(), 0, {0}, {1});
}

static const Tensor& resize(const Tensor& result, at::IntArrayRef sizes, std::optional<at::MemoryFormat> format) {
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(sizes);
  const size_t needed =
      at::detail::computeStorageNbytesContiguous(sizes, result.dtype().itemsize(), result.storage_offset());
  if (needed > result.storage().nbytes()) hooks.resizePrivateUse1Bytes(result.storage(), needed);
  if (format && *format != at::MemoryFormat::Contiguous && *format != at::MemoryFormat::Preserve)
    impl->empty_tensor_restride(*format);
  return result;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Storage_storage_offset", set_range);
  m.impl("set_", set_nothing);
  m.impl("resize_", resize);
  m.impl("view", at::native::view);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  // torch's own kernels of these raise: a device is expected to bring them
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&compute>());
  m.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&compute>());
}

// Without this `module.to("npu")` would put new Parameters in the place of those an optimizer holds, which would then
// train nothing. torch_npu has it too; NPUSIM_REPLACE_PARAMETERS leaves it out, to see that a test notices.
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_has_compatible_shallow_copy_type", [](const Tensor& a, const Tensor& b) {
    static const bool replace = std::getenv("NPUSIM_REPLACE_PARAMETERS") != nullptr;
    auto plain = [](const Tensor& t) {
      return t.layout() == at::kStrided && (t.device().is_cpu() || t.device().type() == NPU);
    };
    if (!replace && plain(a) && plain(b)) return true;
    return a.unsafeGetTensorImpl()->has_compatible_shallow_copy_type(b.key_set());
  });
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>()); }
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

// torch's lists of what autocast widens and narrows, as for any plugin
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  using namespace at::autocast;
#define NPUSIM_LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define NPUSIM_WIDE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define NPUSIM_WIDE_IF_UNSAID(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define NPUSIM_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(NPUSIM_LOWER)
  AT_FORALL_FP32(NPUSIM_WIDE)
  AT_FORALL_FP32_SET_OPT_DTYPE(NPUSIM_WIDE_IF_UNSAID)
  AT_FORALL_PROMOTE(NPUSIM_PROMOTE)
}

TORCH_LIBRARY_FRAGMENT(npusim, m) {
  m.def("seed(int value, int card) -> ()", [](int64_t value, int64_t card) {
    auto generator = hooks.getDefaultGenerator(card);
    generator.set_current_seed(value);
  });
  m.def("random_state(int card) -> Tensor", [](int64_t card) { return hooks.getDefaultGenerator(card).get_state(); });
  m.def("set_random_state(Tensor state, int card) -> ()", [](const Tensor& state, int64_t card) {
    auto generator = hooks.getDefaultGenerator(card);
    generator.set_state(state);
  });
  m.def("held() -> int", [] { return held.load(); });
  m.def("peak() -> int", [] { return peak.load(); });
  m.def("forget_peak() -> ()", [] { peak = held.load(); });
  m.def("refuse_float64(bool on) -> ()", [](bool on) { no_float64 = on; });
}

}  // namespace npusim
