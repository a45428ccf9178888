"""The chunks of an OpenAI stream as our events, in the order of stream.proto. Pure, with the state of one answer.

Reference: https://platform.openai.com/docs/api-reference/chat/streaming, and /completions/create for the older door.
What open servers add is read where it says more: `stop_reason`, the stop string or token that ended an output. What a
model thinks aloud in a field of its own (`reasoning_content`) is no part of the API, and is counted but not passed on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from weir.inference.v1.output_pb2 import FinishReason, Usage
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished, TokenLogprob, ToolCallDelta, TopLogprob
from weir_chassis.errors import WorkerLost
from weir_router.fleet.model_version import Version
from weir_router.providers.openai_errors import failed_within

_END: Final = "[DONE]"
# An answer whose model calls a tool stops there.
_FINISH: Final[Mapping[str, FinishReason.ValueType]] = {
    "stop": FinishReason.FINISH_REASON_STOP,
    "tool_calls": FinishReason.FINISH_REASON_STOP,
    "function_call": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
    "content_filter": FinishReason.FINISH_REASON_CONTENT_FILTER,
}

Told = Delta | OutputFinished


class Answer:
    """One answer of `n` outputs, from `worker`. `usage` is complete when `done`."""

    def __init__(self, worker: str, n: int):
        self._worker, self._unfinished = worker, set(range(n))
        # What it says it is: of the provider's own naming.
        self.model = ""
        self.usage: Usage | None = None
        self.done = False
        # Deltas with something in them: about as many tokens.
        self.parts = 0

    def take(self, data: str) -> Iterator[Told]:
        """The events of one chunk. Raises the error that it is, or WorkerLost when it is not what the API says."""
        if data == _END:
            self.end()
            return
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                raise failed_within(self._worker, chunk["error"])
            self.model = chunk.get("model") or self.model
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
            if chunk.get("usage"):
                self.usage = _usage(chunk["usage"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._lost(f"sent what is no chunk of an answer ({type(error).__name__})") from None

    def end(self) -> None:
        """Nothing more comes. Raises WorkerLost when something should."""
        if self._unfinished:
            raise self._lost("ended its stream before its answer")
        self.done = True

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Told]:
        index = int(choice.get("index", 0))
        if index not in self._unfinished:
            if _delta(index, choice) is None:
                return  # a server may close an output twice
            raise self._lost(f"sent text of output {index}, which is not open")
        if (delta := _delta(index, choice)) is not None:
            self.parts += 1
            yield delta
        if reason := choice.get("finish_reason"):
            self._unfinished.discard(index)
            yield _finished(index, reason, choice.get("stop_reason"))

    def _lost(self, what: str) -> WorkerLost:
        return WorkerLost(f"{self._worker} {what}", metadata={"worker": self._worker})


def accepted(request_id: str, attempt: int, version: Version) -> Accepted:
    return Accepted(request_id=request_id, attempt=attempt, model_version=version.message())


def _delta(index: int, choice: Mapping[str, Any]) -> Delta | None:
    """None when there is nothing in it, as in the first chunk, which only names the role."""
    said = choice.get("delta") or {}
    text = (choice.get("text") or "") + (said.get("content") or "") + (said.get("refusal") or "")
    calls = [_tool_call(call) for call in said.get("tool_calls") or ()]
    logprobs = list(_logprobs(choice.get("logprobs") or {}))
    if not (text or calls or logprobs):
        return None
    return Delta(output_index=index, text=text, tool_calls=calls, logprobs=logprobs)


def _finished(index: int, reason: str, stop_reason: Any) -> OutputFinished:
    finished = OutputFinished(output_index=index, finish_reason=_FINISH.get(reason, FinishReason.FINISH_REASON_STOP))
    if isinstance(stop_reason, str):
        finished.stop = stop_reason
    elif isinstance(stop_reason, int) and 0 <= stop_reason < 1 << 32:
        finished.stop_token_id = stop_reason
    return finished


def _tool_call(call: Mapping[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(
        index=int(call.get("index", 0)),
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments_json=function.get("arguments") or "",
    )


def _logprobs(logprobs: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    """Of a chat under `content`, of a completion in columns."""
    for entry in logprobs.get("content") or ():
        top = [TopLogprob(token=_bytes(one), logprob=one["logprob"]) for one in entry.get("top_logprobs") or ()]
        yield TokenLogprob(token=_bytes(entry), logprob=entry["logprob"], top=top)
    tops = logprobs.get("top_logprobs") or ()
    for position, token in enumerate(logprobs.get("tokens") or ()):
        best = (tops[position] if position < len(tops) else None) or {}
        ordered = sorted(best.items(), key=lambda one: -one[1])
        top = [TopLogprob(token=text.encode(), logprob=logprob) for text, logprob in ordered]
        # The first token of an echoed prompt has none.
        yield TokenLogprob(token=token.encode(), logprob=logprobs["token_logprobs"][position] or 0.0, top=top)


def _bytes(entry: Mapping[str, Any]) -> bytes:
    raw = entry.get("bytes")
    return str(entry["token"]).encode() if raw is None else bytes(raw)


def _usage(usage: Mapping[str, Any]) -> Usage:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    prompt = int(usage["prompt_tokens"])
    completion = int(usage.get("completion_tokens") or 0)
    return Usage(prompt_tokens=prompt, cached_prompt_tokens=min(int(cached), prompt), completion_tokens=completion)
