"""What is known of one request on its way: when it came, until when it may go on, and how long each stage took.

Times are monotonic seconds of one clock; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from weir.executor.v1.executor_pb2 import RequestEnd
from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.stream_pb2 import Receipt, Timings
from weir_chassis.clock import Clock
from weir_chassis.durations import duration
from weir_router.bill import bill
from weir_router.legs import Progress
from weir_router.mapping import worker_score
from weir_router.models.constraints import Bounds
from weir_router.models.selection import Wanted
from weir_router.models.target import Target
from weir_router.policies.choose import Choice
from weir_router.regions import Residency
from weir_router.request import ClientRequest, EncodedPrompt


@dataclass(slots=True)
class Journey:
    request: ClientRequest
    clock: Clock
    started_at: float
    # None: it may go on for ever.
    expires_at: float | None
    # Names that it may come to, and once that is known, what it has come to.
    wanted: Sequence[Wanted] = ()
    target: Target | None = None
    # What the request sets, if it sets any.
    bounds: Bounds | None = None
    # The number of this request among those for its model, once that is known.
    turn: int = 0
    admission_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    # Tries of executors and postprocess replicas, and those of them that went on after tokens.
    attempts: int = 1
    continuations: int = 0
    # The newest one.
    choice: Choice | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def residency(self) -> Residency:
        return self.request.residency

    def left_seconds(self) -> float | None:
        """What is left of the client's deadline; None when it has none. Never negative."""
        return None if self.expires_at is None else max(0.0, self.expires_at - self.clock.monotonic())

    def ttft_left_seconds(self) -> float | None:
        """Until the first token is to be there; None: whenever it comes, or it has come. Never negative."""
        bounds = self.bounds
        if bounds is None or bounds.max_ttft_seconds is None or self.progress.first_delta_at is not None:
            return None
        return max(0.0, bounds.max_ttft_seconds - (self.clock.monotonic() - self.started_at))

    def usage(self, prompt: EncodedPrompt) -> Usage:
        """Counts what the client was given: tokens that the executor drew past a stop string are not among them."""
        progress = self.progress
        if progress.delegated:
            guess = Usage(prompt_tokens=prompt.num_tokens, completion_tokens=progress.delivered_tokens, estimated=True)
            return progress.end.usage if progress.end else guess
        end = _joined(progress.first_end, progress.end or RequestEnd())
        return Usage(
            prompt_tokens=len(prompt.token_ids),
            cached_prompt_tokens=end.usage.cached_prompt_tokens,
            completion_tokens=progress.delivered_tokens,
            draft_tokens=end.usage.draft_tokens,
            accepted_draft_tokens=end.usage.accepted_draft_tokens,
        )

    def receipt(self, prompt: EncodedPrompt, usage: Usage) -> Receipt:
        """`usage`: as its client is told."""
        progress = self.progress
        end = _joined(progress.first_end, progress.end or RequestEnd())
        cost, currency = bill(progress, usage)
        receipt = Receipt(
            request_id=self.request.request_id,
            model_version=progress.version or prompt.version.message(),
            attempts=self.attempts,
            worker=progress.executors[-1] if progress.executors else "",
            prefill_worker=progress.executors[0] if progress.first_end is not None else "",
            policy=self.choice.policy if self.choice else "",
            scores=[worker_score(scored) for scored in self.choice.scores] if self.choice else (),
            alias=self.target.alias if self.target else "",
            arm=self.target.arm if self.target else "",
            selected_by=self.target.selected_by if self.target else "",
            seed=self.request.sampling.seed,
            engine_cached_tokens=end.engine_cached_tokens,
            store_cached_tokens=end.store_cached_tokens,
            store_cached_tokens_by_tier=end.store_cached_tokens_by_tier,
            preemptions=end.preemptions,
            timings=self._timings(end),
            region=self.choice.region if self.choice else "",
            workers=progress.executors,
            continuations=self.continuations,
            cost_micros=cost,
            currency=currency,
            hedged=self.progress.hedged,
        )
        if progress.told is not None:
            _nest(receipt, progress.told)
        return receipt

    def _timings(self, end: RequestEnd) -> Timings:
        progress = self.progress
        return Timings(
            admission=duration(self.admission_seconds),
            tokenize=duration(self.tokenize_seconds),
            queue=end.queue,
            prefill=end.prefill,
            decode=end.decode,
            total=duration(self.clock.monotonic() - self.started_at),
            time_to_first_token=_between(progress.accepted_at, progress.first_delta_at),
            postprocess=_between(progress.drawn_at, progress.written_at),
        )


def _nest(receipt: Receipt, told: Receipt) -> None:
    """Who has answered is what the router says that passed the request on; it is named before its own."""
    receipt.routers.extend((receipt.worker, *told.routers))
    del receipt.workers[-1]
    receipt.workers.extend(told.workers or (told.worker,))
    receipt.worker, receipt.prefill_worker, receipt.seed = told.worker, told.prefill_worker, told.seed
    receipt.region = told.region or receipt.region
    receipt.continuations += told.continuations


def _joined(first: RequestEnd | None, last: RequestEnd) -> RequestEnd:
    """What the two say of their request, as one executor would: the prompt as the first found it, and the rest.

    The second finds in the prompt what the first has just computed; to hand that over takes a part of the time between
    the first token and the end. None: the first has said nothing, and the second has done it all.
    """
    if first is None:
        return last
    end = RequestEnd()
    end.CopyFrom(first)
    end.preemptions += last.preemptions
    end.usage.completion_tokens += last.usage.completion_tokens
    end.usage.draft_tokens += last.usage.draft_tokens
    end.usage.accepted_draft_tokens += last.usage.accepted_draft_tokens
    seconds = sum(each.ToTimedelta().total_seconds() for each in (first.decode, last.queue, last.prefill, last.decode))
    end.decode.FromNanoseconds(round(seconds * 1e9))
    return end


def _between(since: float | None, until: float | None) -> Duration | None:
    """None when one of them has not come to be."""
    return None if since is None or until is None else duration(max(0.0, until - since))
