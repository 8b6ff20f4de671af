// The arithmetic of a simulated NPU: each operator by its CPU kernel, on CPU tensors over the same bytes.
//
// Used twice. With device.cpp, which gives the device itself (memory, copies, random state), it makes `npu` on a machine
// that has neither a chip nor torch_npu. Alone, compiled by
//     g++ -std=c++20 -O1 -fPIC -shared kernels.cpp -I... -L... -ltorch -ltorch_cpu -lc10 -o libnpukernels.so
// it is laid over the real torch_npu on a stub runtime: torch.ops.npusim.take_over(names of aten operators) puts it in
// the place of kernels that would call the chip, take_over_autograd puts torch's own derivatives back.
//
// It says nothing of a chip's numbers or speed.
#include "kernels.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace npusim {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

// ------------------------------------------------------------------------------------------------ what is watched

static std::mutex watching;
static bool recording = false;
static std::map<std::string, int64_t> seen;  // operator -> calls
static std::set<std::string> allowed;        // without overloads; empty: every operator

static std::string name_of(const c10::FunctionSchema& schema) {
  return schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name();
}

static void watch(const c10::FunctionSchema& schema) {
  std::lock_guard<std::mutex> held(watching);
  if (recording) ++seen[name_of(schema)];
  TORCH_CHECK(allowed.empty() || allowed.count(schema.name()), "npusim: ", name_of(schema),
              " is not native on this NPU: it would fall back to run on the CPU");
}

// ------------------------------------------------------------------------------------------------ there and back

Tensor on_host(const Tensor& t) {
  auto* owner = new c10::Storage(t.storage());
  c10::DataPtr bytes(const_cast<void*>(t.storage().data()), owner,
                     [](void* p) { delete static_cast<c10::Storage*>(p); }, c10::Device(c10::kCPU));
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), t.storage().nbytes(),
                                                       std::move(bytes), c10::GetCPUAllocator(), /*resizable=*/true);
  auto host = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage),
                                                       c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  auto* impl = host.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(t.sym_sizes(), t.sym_strides(), t.sym_storage_offset());
  if (t.is_conj()) impl->_set_conj(true);
  if (t.is_neg()) impl->_set_neg(true);
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return host;
}

static Tensor to_device(const Tensor& host, c10::Device device) {
  auto out = at::empty_strided(host.sizes(), host.strides(), host.options().device(device));
  const auto bytes = at::detail::computeStorageNbytes(host.sizes(), host.strides(), host.dtype().itemsize());
  if (bytes) std::memcpy(out.mutable_data_ptr(), host.const_data_ptr(), bytes);
  return out;
}

// A generator for one call, from the device's seed and offset, which moves on: the same state draws the same numbers.
static at::Generator drawn_from(const at::Generator& device) {
  const uint64_t seed = device.current_seed(), offset = device.get_offset();
  const_cast<at::Generator&>(device).set_offset(offset + 4);
  return at::make_generator<at::CPUGeneratorImpl>(seed * 0x9E3779B97F4A7C15ull + offset * 0xBF58476D1CE4E5B9ull + 1);
}

// One call on its way to the host and back.
struct Call {
  const c10::FunctionSchema& schema;
  std::vector<std::pair<Tensor, Tensor>> pairs;  // on the device, on the host
  c10::optional<c10::Device> device;
  bool of_host = false;  // a CPU tensor that is more than a number

  explicit Call(const c10::FunctionSchema& s) : schema(s) {}

  Tensor in(const Tensor& t) {
    if (!t.defined()) return t;
    if (t.device().type() != NPU) {
      of_host |= t.device().is_cpu() && t.dim() > 0;
      return t;
    }
    if (t.dim() > 0 || !device) {
      TORCH_CHECK(!device || *device == t.device() || t.dim() == 0 || !settled,
                  "Expected all tensors to be on the same device, but found at least two devices, ", device->str(),
                  " and ", t.device().str(), "! (in ", schema.name(), ")");
      device = t.device();
      settled |= t.dim() > 0;
    }
    for (auto& pair : pairs)
      if (pair.first.is_same(t)) return pair.second;
    pairs.emplace_back(t, on_host(t));
    return pairs.back().second;
  }

  IValue in(const IValue& v) {
    if (v.isTensor()) return in(v.toTensor());
    if (v.isTensorList()) {
      c10::List<Tensor> list;
      for (const auto& t : v.toTensorVector()) list.push_back(in(t));
      return list;
    }
    if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const auto& t : v.toOptionalTensorVector()) list.push_back(t ? std::optional<Tensor>(in(*t)) : std::nullopt);
      return list;
    }
    if (v.isDevice() && v.toDevice().type() == NPU) {
      if (!device) device = v.toDevice();
      return c10::Device(c10::kCPU);
    }
    return v;
  }

  // Generators come last: by then it is known whether the call is the device's.
  IValue generator(const IValue& v, const c10::Argument& argument) {
    if (v.isGenerator()) {
      const auto given = v.toGenerator();
      TORCH_CHECK(pairs.empty() || given.device().type() == NPU,
                  "Expected a 'npu' device type for generator but found 'cpu'");
      return given.device().type() == NPU ? IValue(drawn_from(given)) : v;
    }
    const bool left_out = v.isNone() && argument.type()->str().find("Generator") != std::string::npos;
    return left_out ? IValue(drawn_from(at::globalContext().defaultGenerator(*device))) : v;
  }

  void check_devices() const {
    static const std::set<std::string> take_both = {
        "aten::index",  "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
        "aten::_unsafe_index", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize",
    };
    TORCH_CHECK(!of_host || pairs.empty() || take_both.count(schema.name()),
                "Expected all tensors to be on the same device, but found at least two devices, ", device->str(),
                " and cpu! (in ", schema.name(), ")");
  }

  // Arguments an operator wrote to, which may have grown (out=) or changed their shape.
  void write_back() const {
    for (const auto& [ours, host] : pairs) {
      if (host.storage().data() != ours.storage().data()) {
        const auto bytes = host.storage().nbytes();
        auto fresh = at::empty({static_cast<int64_t>(bytes)}, ours.options().dtype(at::kByte));
        if (bytes) std::memcpy(fresh.mutable_data_ptr(), host.storage().data(), bytes);
        auto* storage = ours.storage().unsafeGetStorageImpl();
        storage->set_data_ptr(std::move(fresh.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
        storage->set_nbytes(bytes);
      }
      if (host.sizes() != ours.sizes() || host.strides() != ours.strides() ||
          host.storage_offset() != ours.storage_offset())
        ours.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }

  Tensor out(const Tensor& host) const {
    if (!host.defined() || !host.device().is_cpu() || schema.name() == "aten::_local_scalar_dense") return host;
    for (const auto& pair : pairs)
      if (pair.second.is_same(host)) return pair.first;
    for (const auto& pair : pairs) {  // a view of an argument stays one
      if (!host.has_storage() || !pair.second.storage().is_alias_of(host.storage())) continue;
      auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(pair.first.storage()),
                                                           pair.first.key_set(), host.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
      return view;
    }
    return to_device(host, *device);
  }

  IValue out(const IValue& v) const {
    if (v.isTensor()) return out(v.toTensor());
    if (!v.isTensorList()) return v;
    c10::List<Tensor> list;
    for (const auto& t : v.toTensorVector()) list.push_back(out(t));
    return list;
  }

 private:
  bool settled = false;  // a tensor with dimensions has said which device it is: numbers follow it
};

// torch takes the derivative of `matmul` through its parts; a device with a kernel for the whole is asked for this.
static std::tuple<Tensor, Tensor> derivatives_of_matmul(const Tensor& grad, const Tensor& self, const Tensor& other,
                                                  std::array<bool, 2> mask) {
  const bool row = self.dim() == 1, column = other.dim() == 1;
  const auto left = row ? self.unsqueeze(0) : self, right = column ? other.unsqueeze(-1) : other;
  auto wide = column ? grad.unsqueeze(-1) : grad;
  if (row) wide = wide.unsqueeze(-2);
  auto summed = [](const Tensor& t, const Tensor& like, const Tensor& flat) {
    return t.sum_to_size(like.sizes()).view_as(flat);
  };
  return {mask[0] ? summed(at::matmul(wide, right.mT()), left, self) : Tensor(),
          mask[1] ? summed(at::matmul(left.mT(), wide), right, other) : Tensor()};
}

// Convolutions reach a device under names of their own, and one argument apart.
static void call_on_host(const c10::OperatorHandle& op, std::vector<IValue> given, Stack* stack) {
  auto push = [&](size_t from, size_t to) { stack->insert(stack->end(), given.begin() + from, given.begin() + to); };
  if (op.schema().name() == "aten::convolution_overrideable") {
    static const auto plain = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
    push(0, given.size());
    plain.callBoxed(stack);
  } else if (op.schema().name() == "aten::convolution_backward_overrideable") {
    static const auto plain = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution_backward", "");
    push(0, 3);
    const bool of_bias = given[9].toBoolList().get(2);
    stack->push_back(of_bias ? IValue(std::vector<int64_t>{given[0].toTensor().size(1)}) : IValue());
    push(3, 10);
    plain.callBoxed(stack);
  } else if (op.schema().name() == "aten::matmul_backward") {
    const auto mask = given[3].toBoolList();
    auto [self, other] =
        derivatives_of_matmul(given[0].toTensor(), given[1].toTensor(), given[2].toTensor(), {mask.get(0), mask.get(1)});
    stack->push_back(self);
    stack->push_back(other);
  } else {
    push(0, given.size());
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
}

void compute(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto& schema = op.schema();
  watch(schema);
  const size_t count = schema.arguments().size(), base = stack->size() - count;
  Call call(schema);
  std::vector<IValue> given;
  for (size_t i = 0; i < count; ++i) given.push_back(call.in((*stack)[base + i]));
  if (!call.device || !call.device->has_index()) call.device = c10::Device(NPU, 0);
  for (size_t i = 0; i < count; ++i) given[i] = call.generator(given[i], schema.arguments()[i]);
  call.check_devices();

  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKeySet(
      {c10::DispatchKey::AutocastPrivateUse1, c10::DispatchKey::AutocastCPU}));
  torch::jit::drop(*stack, count);
  call_on_host(op, std::move(given), stack);
  call.write_back();
  const size_t first = stack->size() - schema.returns().size();
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = call.out((*stack)[i]);
}

// ------------------------------------------------------------------------------------- over another's kernels

static std::vector<std::unique_ptr<torch::Library>> registrations;  // they end with what holds them

static void plain_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  op.getComputedKernelForDispatchKey(c10::DispatchKey::AutogradCPU).callBoxed(op, keys, stack);
}

template <torch::CppFunction (*make)()>
static int64_t put_over(const std::vector<std::string>& names, c10::DispatchKey key) {
  auto library = std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
  int64_t done = 0;
  for (const auto& name : names) {
    if (name.rfind("aten::", 0) != 0) continue;
    if (!c10::Dispatcher::singleton().findSchema(torch::jit::parseName(name))) continue;
    library->impl(name.substr(6).c_str(), make());
    ++done;
  }
  registrations.push_back(std::move(library));
  return done;
}

static torch::CppFunction computing() { return torch::CppFunction::makeFromBoxedFunction<&compute>(); }
static torch::CppFunction deriving() { return torch::CppFunction::makeFromBoxedFunction<&plain_autograd>(); }

TORCH_LIBRARY(npusim, m) {
  m.def("take_over(str[] names) -> int", [](std::vector<std::string> names) {
    return put_over<&computing>(names, c10::DispatchKey::PrivateUse1);
  });
  m.def("take_over_autograd(str[] names) -> int", [](std::vector<std::string> names) {
    return put_over<&deriving>(names, c10::DispatchKey::AutogradPrivateUse1);
  });
  m.def("allow(str[] names) -> ()", [](std::vector<std::string> names) {
    std::lock_guard<std::mutex> held(watching);
    allowed = {names.begin(), names.end()};
  });
  m.def("record(bool on) -> ()", [](bool on) {
    std::lock_guard<std::mutex> held(watching);
    recording = on;
    if (on) seen.clear();
  });
  m.def("recorded() -> str[]", [] {
    std::lock_guard<std::mutex> held(watching);
    std::vector<std::string> names;
    for (const auto& each : seen) names.push_back(each.first);
    return names;
  });
}

}  // namespace npusim
