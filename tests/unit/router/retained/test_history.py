"""What another router goes on with is what the log says."""

from __future__ import annotations

from unit.router.retained.streams import delta
from weir.inference.v1.stream_pb2 import Accepted, Continued, OutputFinished
from weir.router.v1.retained_pb2 import RetainedPrompt
from weir_router.fleet.model_version import Version
from weir_router.keeping import Drawing
from weir_router.request import EncodedPrompt
from weir_router.retained.history import begun_of, prompt_of
from weir_router.retained.log import RetainedLog

PROMPT = EncodedPrompt(Version("m", "r", "t"), [1, 2, 3], b"h" * 16, 16, adapter="a", tenant_salt="s")


def test_tokens_ends_and_attempts_are_those_that_were_told() -> None:
    log = RetainedLog(1 << 20)
    finished = OutputFinished(output_index=1)
    for event in (
        Accepted(attempt=2),
        delta(0, 0, [5]),
        delta(1, 0, [6]),
        Continued(attempt=3),
        delta(0, 1, [7, 8]),
        finished,
    ):
        log.add(event)
    begun = begun_of(log.entries(), prompt_of(PROMPT, Drawing("bf16", anew=True)))
    assert begun.token_ids == {0: [5, 7, 8], 1: [6]}
    assert begun.finished == {1: finished}
    assert (begun.attempts, begun.drawing) == (3, Drawing("bf16", anew=True))


def test_the_prompt_is_the_same_but_for_hashes_that_are_computed_where_it_goes_on() -> None:
    told = RetainedPrompt.FromString(prompt_of(PROMPT, Drawing()).SerializeToString())
    prompt = begun_of([], told).prompt
    assert (prompt.version, list(prompt.token_ids)) == (PROMPT.version, [1, 2, 3])
    assert (prompt.adapter, prompt.tenant_salt) == ("a", "s")
    assert (prompt.block_hashes, prompt.block_size) == (b"", 0)
