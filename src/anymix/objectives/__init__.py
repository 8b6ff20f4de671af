"""Losses as pure functions: tensors in, a summed fp32 loss out. No modules, no configuration, no trainer."""
