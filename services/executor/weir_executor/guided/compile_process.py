"""The process that compiles guides: it may take too long, too much memory, or crash, and is then replaced.

    python -m weir_executor.guided.compile_process TOKENIZER_JSON VOCAB_SIZE MAX_SECONDS MAX_BYTES MAX_COMPILED_BYTES

It reads requests from its standard input and writes a reply for each; first of all a reply that it is ready. Both are
frames: eight bytes of length, big-endian, then so many bytes. A request is JSON, a reply "+" and the compiled guide, or
"-" and what is wrong. It ends with its input, and by itself when a guide takes twice the time that it may take, lest it
goes on for ever without its parent.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weir_executor.guided.compile import Compiler, GuideError, Tokens
from weir_executor.guided.guide import Guide, GuideKind
from weir_executor.guided.vocabulary import read_token_bytes

LENGTH_BYTES = 8
COMPILED, REFUSED = b"+", b"-"


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """What one guide may take."""

    max_seconds: float
    max_bytes: int  # of the whole process
    max_compiled_bytes: int

    def argv(self) -> list[str]:
        return [str(self.max_seconds), str(self.max_bytes), str(self.max_compiled_bytes)]


def encode_request(guide: Guide) -> bytes:
    return json.dumps([guide.kind.value, guide.text]).encode()


def main(argv: list[str]) -> None:
    path, vocab_size, limits = Path(argv[0]), int(argv[1]), CompileLimits(float(argv[2]), int(argv[3]), int(argv[4]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the parent, which ends us
    resource.setrlimit(resource.RLIMIT_AS, (limits.max_bytes, limits.max_bytes))
    compiler = Compiler(Tokens(read_token_bytes(path, vocab_size)))
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    _write(replies, COMPILED)
    while (request := _read(requests)) is not None:
        signal.setitimer(signal.ITIMER_REAL, 2 * limits.max_seconds)  # nobody handles the signal: it ends the process
        reply = _reply(compiler, request, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)


def _reply(compiler: Compiler, request: bytes, limits: CompileLimits) -> bytes:
    kind, text = json.loads(request)
    try:
        compiled = compiler.compile(Guide(GuideKind(kind), text))
        if (size := compiled.memory_size_bytes) > limits.max_compiled_bytes:
            raise GuideError(f"takes {size} bytes when compiled; at most {limits.max_compiled_bytes}")
        return COMPILED + bytes(compiled.serialize_json(), "utf-8")
    except GuideError as error:
        return REFUSED + str(error).encode()
    except MemoryError:
        return REFUSED + f"takes more than {limits.max_bytes} bytes to compile".encode()


def _read(stream: BinaryIO) -> bytes | None:
    length = stream.read(LENGTH_BYTES)
    return stream.read(int.from_bytes(length, "big")) if len(length) == LENGTH_BYTES else None


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    stream.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
