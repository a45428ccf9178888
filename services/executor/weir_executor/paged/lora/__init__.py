"""LoRA adapters in the batch: each row's tokens pass through the weights of its own adapter, or of none."""
