"""llama.cpp's server over HTTP on loopback, bf16 weights. python -m bench.contenders.llama_cpp MODEL_DIR

Runs in the environment that `bench.peers` built: the server is in its `llama.cpp/build/bin`, the converter in its
sources.
"""

from __future__ import annotations

import json
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.contenders.serving import THREADS, Answer, serve
from bench.workload import Work

_SLOTS = 32
_CONTEXT = _SLOTS * 2304  # tokens; the longest prompt and its output fit one slot
_START_SECONDS, _ANSWER_SECONDS = 120.0, 1800.0


def converted(directory: Path, sources: Path) -> Path:
    """The model as a GGUF file, made beside it once by llama.cpp's own converter."""
    target = directory.with_name(directory.name + "-bf16.gguf")
    if not target.is_file():
        partial = target.with_suffix(".partial")
        command = [sys.executable, "-m", "bench.contenders.llama_cpp", "--convert", str(sources), str(directory)]
        subprocess.run([*command, str(partial)], check=True, stdout=sys.stderr)
        partial.rename(target)
    return target


def convert(sources: Path, directory: Path, target: Path) -> None:
    """Runs the converter in this process. It knows a tokenizer by its hash, and ours is not in its table."""
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    import conversion.base

    for value in vars(conversion.base).values():
        if hasattr(value, "get_vocab_base_pre"):
            value.get_vocab_base_pre = lambda self, tokenizer: "smollm"
    sys.argv = ["convert_hf_to_gguf.py", str(directory), "--outfile", str(target), "--outtype", "bf16"]
    runpy.run_path(str(sources / "convert_hf_to_gguf.py"), run_name="__main__")


def started(server: Path, model: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The running server and its address."""
    port = _free_port()
    options = {
        "-m": model,
        "--host": "127.0.0.1",
        "--port": port,
        "-t": THREADS,
        "-tb": THREADS,
        "-np": _SLOTS,
        "-c": _CONTEXT,
        "-b": 2048,
        "-ub": 512,
        "-fa": "on",
        "--cache-ram": 0,
    }
    flags = ["--no-kv-unified", "--no-warmup", "--no-webui"]
    command = [str(server), *(str(part) for option in options.items() for part in option), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    _until_healthy(process, address)
    return process, address


def _until_healthy(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"llama-server ended with code {process.returncode}"
        try:
            if json.load(urllib.request.urlopen(address + "/health", timeout=2)).get("status") == "ok":
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"llama-server was not ready after {_START_SECONDS:.0f} s")


def answering(address: str) -> Answer:
    def one(prompt: list[int], length: int, cached: bool) -> list[int]:
        options = {"n_predict": length, "ignore_eos": True, "return_tokens": True, "cache_prompt": cached}
        greedy = {"temperature": 0.0, "top_k": 1, "samplers": ["top_k"]}
        body = json.dumps({"prompt": prompt, **options, **greedy}).encode()
        request = urllib.request.Request(address + "/completion", body, {"Content-Type": "application/json"})
        answer: Any = json.load(urllib.request.urlopen(request, timeout=_ANSWER_SECONDS))
        return list(answer["tokens"])

    def answer(work: Work) -> list[list[int]]:
        with ThreadPoolExecutor(_SLOTS) as threads:
            return list(threads.map(one, work.prompts, work.lengths, [work.cached] * len(work.prompts)))

    return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(directory: Path) -> None:
    home = Path(sys.prefix) / "llama.cpp"
    process, address = started(home / "build/bin/llama-server", converted(directory, home / "sources"))
    try:
        serve(answering(address))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1] == "--convert":
        convert(*map(Path, sys.argv[2:]))
    else:
        main(Path(sys.argv[1]))
