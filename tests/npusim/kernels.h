// What computes for the simulated NPU, and, put over the kernels of the real torch_npu, for one without a chip.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace npusim {

constexpr auto NPU = c10::DeviceType::PrivateUse1;

// A CPU tensor over the same bytes: no copy, and the bytes live as long as it does.
at::Tensor on_host(const at::Tensor& tensor);

// Runs any operator by its CPU kernel on such tensors; new results go back to the device of the arguments.
// Raises for tensors of two devices, for a CPU generator beside tensors of the device, and, where `allow` was given
// names, for an operator that is not among them.
void compute(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack);

}  // namespace npusim
