"""An image in the place of NVIDIA's: TensorRT-LLM's metadata and the real packages that it pins, but no engine."""
