"""`make bench-gpu`: the engine on a CUDA device, beside transformers and against what the device can do."""
