"""What the `weir` command prints: text as it comes, JSON lines, a timing line, errors that say what to do next."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import click
from google.protobuf.json_format import MessageToJson

from weir.inference.v1.chat_pb2 import ChatMessage
from weir.inference.v1.embedding_pb2 import Embedding
from weir.router.v1.router_pb2 import (
    ChatResponse,
    DetectWatermarkResponse,
    GenerateResponse,
    Model,
    ResumeResponse,
    ServedAlias,
)
from weir_chassis.errors import WeirError, reason_name
from weir_client.answer import Answer, Event
from weir_client.client import message

_HINTS = {
    "WORKER_LOST": "is it running? start one with 'weir up', or name another (--router, --executor, --kvstore)",
    "NO_WORKER": "see which services are healthy with 'weir status'",
    "MODEL_NOT_FOUND": "list what is served with 'weir models'",
    "OVERLOADED": "try again in a moment",
    "REVISION_MISMATCH": "start tokenizer and executor from the same model directory",
}


@dataclass(slots=True)
class Stopwatch:
    """Wall-clock seconds of one stream, as its reader saw them."""

    started: float
    first_token: float | None = None
    ended: float | None = None

    @classmethod
    def start(cls) -> Stopwatch:
        return cls(perf_counter())

    def see(self, event: Event) -> None:
        if self.first_token is None and event.HasField("delta"):
            self.first_token = perf_counter()

    def stop(self) -> None:
        self.ended = perf_counter()


Events = AsyncIterator[ChatResponse] | AsyncIterator[GenerateResponse] | AsyncIterator[ResumeResponse]


async def stream(events: Events, *, as_json: bool) -> Answer:
    """Print an answer as it comes, and return the whole of it."""
    return await (stream_json(events) if as_json else stream_text(events))


async def stream_text(events: Events) -> Answer:
    """Print output 0 as it comes, further outputs whole after it, then the timing line on stderr."""
    answer, watch = Answer(), Stopwatch.start()
    async for event in events:
        watch.see(event)
        answer.add(event)
        if event.HasField("delta") and event.delta.output_index == 0:
            click.echo(event.delta.text, nl=False)
    watch.stop()
    click.echo()
    for index in sorted(set(answer.outputs) - {0}):
        click.secho(f"--- output {index}", fg="bright_black", err=True)
        click.echo(answer.outputs[index].text)
    click.secho(timing_line(answer, watch), fg="bright_black", err=True)
    return answer


async def stream_json(events: Events) -> Answer:
    """Print each event as one line of JSON, fields named as in the protos."""
    answer = Answer()
    async for event in events:
        answer.add(event)
        click.echo(MessageToJson(event, preserving_proto_field_name=True, indent=None))
    return answer


def timing_line(answer: Answer, watch: Stopwatch) -> str:
    """`12 prompt (8 cached) + 40 tokens · TTFT 31 ms · 84 tokens/s`; the rate counts from the first token on."""
    usage = answer.usage
    cached = f"{usage.cached_prompt_tokens} cached"
    for tier, tokens in sorted(answer.receipt.store_cached_tokens_by_tier.items()):
        cached += f", {tokens} from {tier}"
    parts = [f"{usage.prompt_tokens} prompt ({cached}) + {usage.completion_tokens} tokens"]
    if watch.first_token is not None and watch.ended is not None:
        parts.append(f"TTFT {1e3 * (watch.first_token - watch.started):.0f} ms")
        seconds, tokens = watch.ended - watch.first_token, usage.completion_tokens - 1
        if tokens > 0 and seconds > 0:
            parts.append(f"{tokens / seconds:.0f} tokens/s")
    if usage.draft_tokens:
        parts.append(f"{usage.accepted_draft_tokens} of {usage.draft_tokens} drafts accepted")
    return " · ".join(parts)


def error_line(error: WeirError) -> str:
    """`OVERLOADED: the queue is full` and, where we know one, what to do next."""
    name = reason_name(error.reason)
    hint = _HINTS.get(name)
    return f"{name}: {error.message}" + (f"\n  {hint}" if hint else "")


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of equal length below one another, the first columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_row(cells, widths, left) for cells in rows)


def _row(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    texts = [cell.ljust(width) for cell, width in zip(cells[:left], widths[:left], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[left:], widths[left:], strict=True)]
    return "  ".join([*texts, *numbers]).rstrip()


def size(num_bytes: int) -> str:
    """`1.5 GiB`."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def assistant(answer: Answer) -> ChatMessage:
    """The answer as the next message of a conversation."""
    return message("assistant", answer.text)


def model_line(model: Model) -> str:
    version = model.model_version
    chat = "" if model.has_chat_template else ", no chat template"
    return (
        f"{version.model}  revision {version.revision}  context {model.max_model_len}  "
        f"{model.healthy_workers}/{model.workers} workers healthy{chat}"
    )


def alias_line(alias: ServedAlias) -> str:
    return f"{alias.name}  alias of {', '.join(alias.models)}"


def model_json(model: Model | ServedAlias) -> str:
    return str(MessageToJson(model, preserving_proto_field_name=True, indent=None))


def detection_json(found: DetectWatermarkResponse) -> str:
    return json.dumps(
        {
            "scored_tokens": found.scored_tokens,
            "green_tokens": found.green_tokens,
            "z_score": round(found.z_score, 3),
            "p_value": found.p_value,
        }
    )


def embedding_json(text: str, embedding: Embedding) -> str:
    return json.dumps({"text": text, "embedding": list(embedding.values)}, ensure_ascii=False)
