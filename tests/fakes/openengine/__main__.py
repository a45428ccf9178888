"""The double as a process: `python -m fakes.openengine MODEL_DIR MODEL PORT [REVISION]`. Says where it serves."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from fakes.openengine.double import OpenEngineDouble, Traits

# Slow enough to be killed in mid-stream.
_STEP_SECONDS = 0.02

if __name__ == "__main__":
    model_dir, model, port, *revision = sys.argv[1:]
    double = OpenEngineDouble(
        Path(model_dir),
        traits=Traits(model=model, revision=int(revision[0]) if revision else 1),
        port=int(port),
        max_model_len=2048,
        block_size=16,
        kv_cache_max_tokens=1024 * 16,
        max_num_seqs=16,
        max_batched_tokens=256,
    )
    double.llm.step_seconds = _STEP_SECONDS
    print(double.address, flush=True)
    threading.Event().wait()
