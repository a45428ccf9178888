"""What a log says of a request that is to be gone on with. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from weir.inference.v1.stream_pb2 import OutputFinished
from weir.router.v1.retained_pb2 import RetainedEntry, RetainedPrompt
from weir_router.fleet.model_version import Version
from weir_router.keeping import Begun, Drawing
from weir_router.request import EncodedPrompt


def prompt_of(prompt: EncodedPrompt, drawing: Drawing) -> RetainedPrompt:
    return RetainedPrompt(
        model_version=prompt.version.message(),
        token_ids=prompt.token_ids,
        adapter=prompt.adapter,
        tenant_salt=prompt.tenant_salt,
        numerics=drawing.numerics,
        draws_anew=drawing.anew,
    )


def begun_of(entries: Sequence[RetainedEntry], prompt: RetainedPrompt) -> Begun:
    token_ids: dict[int, list[int]] = defaultdict(list)
    finished: dict[int, OutputFinished] = {}
    attempts = 1
    for entry in entries:
        match entry.WhichOneof("entry"):
            case "accepted":
                attempts = entry.accepted.attempt
            case "delta":
                token_ids[entry.delta.output_index] += entry.delta.token_ids
            case "continued":
                attempts = entry.continued.attempt
            case "finished":
                finished[entry.finished.output_index] = entry.finished
    return Begun(_encoded(prompt), Drawing(prompt.numerics, prompt.draws_anew), token_ids, finished, attempts)


def _encoded(prompt: RetainedPrompt) -> EncodedPrompt:
    """Without hashes: they are computed for the blocks of whoever goes on."""
    version = Version.of(prompt.model_version)
    return EncodedPrompt(version, prompt.token_ids, b"", 0, prompt.adapter, prompt.tenant_salt)
