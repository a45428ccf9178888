"""The double as a process: `python -m fakes.openengine MODEL_DIR MODEL PORT`. Says `serving` once it does."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from fakes.openengine.double import OpenEngineDouble, Traits

if __name__ == "__main__":
    model_dir, model, port = sys.argv[1:4]
    double = OpenEngineDouble(
        Path(model_dir),
        traits=Traits(model=model),
        port=int(port),
        max_model_len=4096,
        block_size=16,
        kv_cache_max_tokens=1024 * 16,
        max_num_seqs=16,
        max_batched_tokens=256,
    )
    double.llm.step_seconds = 0.02  # slow enough to be killed in mid-stream
    print(f"serving {double.address}", flush=True)
    threading.Event().wait()
