"""LoRA: injected into a net by peft, kept as PEFT folders, merged, and fused for original layouts."""
