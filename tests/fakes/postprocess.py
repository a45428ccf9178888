"""A postprocess service for the byte model: whole UTF-8, stop strings, log-probabilities, one stream per caller."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fakes import bytes_model
from fakes.faults import Crash
from weir.inference.v1.output_pb2 import FinishReason, RowLogprobs, TokenBatch
from weir.inference.v1.stream_pb2 import Delta, TokenLogprob, TopLogprob
from weir.postprocess.v1 import postprocess_pb2 as pb
from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceServicer
from weir_chassis.errors import AlreadyExists, InvalidArgument, ModelNotFound, WeirError
from weir_chassis.status import to_failure

# Ids from the vocabulary's size up to this are a padded model's: they have no text.
_MAX_TOKEN_IDS = 1 << 31
_UTF8 = codecs.getincrementaldecoder("utf-8")
NAME = pb.DESCRIPTOR.services_by_name["PostprocessService"].full_name


class FakePostprocess(PostprocessServiceServicer):
    """What a test may look at: `opens`, `closed`, `messages`, `live`. What it may set: `silent`, `error`, `crash`."""

    def __init__(self, *models: str) -> None:
        """`models`: names of those that it knows besides the one that all fakes share."""
        self.models = (bytes_model.VERSION.model, *models)
        self.opens: list[pb.Open] = []
        self.closed: list[int] = []
        self.messages = 0
        # Takes everything and answers nothing.
        self.silent = False
        # Given to each request that opens, instead of text.
        self.error: WeirError | None = None
        self.crash = Crash()
        self._sessions: list[_Session] = []

    @property
    def live(self) -> int:
        return sum(len(session.requests) for session in self._sessions)

    def fail_live(self, error: WeirError) -> None:
        """Each request that is open fails by itself, with the next message that comes."""
        for session in self._sessions:
            session.failing = error

    async def Postprocess(
        self, request_iterator: AsyncIterator[pb.PostprocessRequest], context: Any
    ) -> AsyncIterator[pb.PostprocessResponse]:
        self.crash.check()
        session = _Session(self)
        self._sessions.append(session)
        try:
            async with aclosing(self.crash.guard(request_iterator)) as requests:
                async for request in requests:
                    self.messages += 1
                    answer = session.answer(request)
                    if answer.ByteSize() and not self.silent:
                        yield answer
        finally:
            self._sessions.remove(session)


@dataclass
class _Token:
    """`whole`: the text so far ends with a whole character."""

    token_id: int
    logprobs: list[TokenLogprob]
    text: str
    whole: bool


@dataclass
class _Output:
    """What is not out yet waits in `held`: it may be half a character, or the beginning of a stop string."""

    opened: pb.Open
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _UTF8("replace"))
    num_sent: int = 0
    held: list[_Token] = field(default_factory=list)

    def add(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> str | None:
        """Takes tokens up to the one that completes a stop string; returns that string."""
        for index, token_id in enumerate(token_ids):
            text = self.decoder.decode(bytes_model.token_bytes(token_id)) + self._special(token_id)
            whole = not self.decoder.getstate()[0]
            self.held.append(_Token(token_id, list(logprobs[index : index + 1]), text, whole))
            if (stop := self._cut_at_stop()) is not None:
                return stop
        return None

    def end(self, *, with_stop_token: bool) -> None:
        """No more tokens: half a character becomes U+FFFD, and the token that ended the output has no text."""
        if self.held:
            self.held[-1].text = "" if with_stop_token else self.held[-1].text + self.decoder.decode(b"", final=True)

    def take(self, output_index: int, count: int) -> Delta:
        """The first `count` tokens that are held."""
        tokens, self.held = self.held[:count], self.held[count:]
        self.num_sent += count
        return Delta(
            output_index=output_index,
            first_token_index=self.num_sent - count,
            token_ids=[token.token_id for token in tokens],
            text="".join(token.text for token in tokens),
            logprobs=[entry for token in tokens for entry in token.logprobs],
        )

    def num_ready(self) -> int:
        """How many tokens may go out: up to a whole character, and before what may become a stop string."""
        text = "".join(token.text for token in self.held)
        free = len(text) - max((_overlap(text, stop) for stop in self.opened.stop), default=0)
        ready = position = 0
        for count, token in enumerate(self.held, start=1):
            position += len(token.text)
            if token.whole and position <= free:
                ready = count
        return ready

    def _special(self, token_id: int) -> str:
        wanted = self.opened.HasField("skip_special_tokens") and not self.opened.skip_special_tokens
        return bytes_model.EOS_TEXT if wanted and token_id == bytes_model.EOS else ""

    def _cut_at_stop(self) -> str | None:
        if not self.opened.stop:
            return None
        text = "".join(token.text for token in self.held)
        found = [(at, stop) for stop in self.opened.stop if (at := text.find(stop)) >= 0]
        if not found:
            return None
        at, stop = min(found)
        left = at + len(stop) if self.opened.include_stop_in_output else at
        for token in self.held:
            token.text = token.text[:left]
            left -= len(token.text)
        return stop


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that may be the beginning of `stop`."""
    return max((size for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)


@dataclass
class _Session:
    """One caller: outputs by handle and index. A request is forgotten when its last output is finished."""

    service: FakePostprocess
    requests: dict[int, dict[int, _Output]] = field(default_factory=dict)
    failing: WeirError | None = None

    def answer(self, request: pb.PostprocessRequest) -> pb.PostprocessResponse:
        response = pb.PostprocessResponse()
        if self.failing is not None:
            for handle in self.requests:
                response.failed.add(handle=handle, failure=to_failure(self.failing))
            self.requests.clear()
            self.failing = None
        for opening in request.opens:
            self._open(response, opening)
        # Nothing comes back for what this message closes, so it is closed before it could be answered.
        for handle in request.closed_handles:
            self.service.closed.append(handle)
            self.requests.pop(handle, None)
        # An output that ends in this message sends all its text at its end, when it is known which tokens have text.
        ending = {(finish.handle, finish.output_index) for finish in request.finishes}
        self._add_tokens(response, request.tokens, ending)
        for finish in request.finishes:
            self._finish(response, finish)
        return response

    def _open(self, response: pb.PostprocessResponse, opening: pb.Open) -> None:
        self.service.opens.append(opening)
        error = self.service.error or self._problem(opening)
        if error is not None:
            response.failed.add(handle=opening.handle, failure=to_failure(error))
            return
        outputs = {index: _Output(opening) for index in range(opening.n)}
        for resumed in opening.resumed_outputs:
            output = outputs[resumed.output_index]
            output.add(resumed.token_ids, ())
            output.take(resumed.output_index, len(resumed.token_ids))
        self.requests[opening.handle] = outputs

    def _problem(self, opening: pb.Open) -> WeirError | None:
        if opening.handle in self.requests:
            return AlreadyExists(str(opening.handle), "the handle lives")
        if opening.model not in self.service.models:
            return ModelNotFound(opening.model, list(self.service.models))
        if not 1 <= opening.n <= 16:
            return InvalidArgument("n", f"must be in [1, 16], is {opening.n}")
        if not all(1 <= len(stop.encode()) <= 1024 for stop in opening.stop):
            return InvalidArgument("stop", "must be of 1 to 1024 bytes each")
        return None

    def _add_tokens(self, response: pb.PostprocessResponse, batch: TokenBatch, ending: set[tuple[int, int]]) -> None:
        if not len(batch.handles) == len(batch.output_indexes) == len(batch.token_counts):
            raise InvalidArgument("tokens", "must have columns of the same length")
        logprobs, start = {entry.row: entry for entry in batch.logprobs}, 0
        for row, (handle, output_index, count) in enumerate(
            zip(batch.handles, batch.output_indexes, batch.token_counts, strict=True)
        ):
            token_ids, start = batch.token_ids[start : start + count], start + count
            output = self.requests.get(handle, {}).get(output_index)
            if output is None:
                continue
            if max(token_ids, default=0) >= _MAX_TOKEN_IDS:
                error = InvalidArgument("tokens", f"must be below {_MAX_TOKEN_IDS}")
                response.failed.add(handle=handle, failure=to_failure(error))
                del self.requests[handle]
                continue
            stop = output.add(token_ids, _logprobs(token_ids, logprobs.get(row)))
            if stop is None and (handle, output_index) not in ending:
                self._send(response, handle, output_index, output.num_ready())
            elif stop is not None:
                self._send(response, handle, output_index, len(output.held))
                self._end(response, handle, output_index, FinishReason.FINISH_REASON_STOP, stop)

    def _finish(self, response: pb.PostprocessResponse, finish: pb.Finish) -> None:
        output = self.requests.get(finish.handle, {}).get(finish.output_index)
        if output is None:
            return
        output.end(with_stop_token=finish.ends_with_stop_token)
        self._send(response, finish.handle, finish.output_index, len(output.held))
        self._end(response, finish.handle, finish.output_index, finish.finish_reason)

    def _send(self, response: pb.PostprocessResponse, handle: int, output_index: int, count: int) -> None:
        if count:
            response.handles.append(handle)
            response.deltas.append(self.requests[handle][output_index].take(output_index, count))

    def _end(
        self,
        response: pb.PostprocessResponse,
        handle: int,
        output_index: int,
        reason: FinishReason.ValueType,
        stop: str | None = None,
    ) -> None:
        response.finished.add(handle=handle, output_index=output_index, finish_reason=reason, stop=stop)
        del self.requests[handle][output_index]
        if not self.requests[handle]:
            del self.requests[handle]


def _logprobs(token_ids: Sequence[int], row: RowLogprobs | None) -> list[TokenLogprob]:
    if row is None:
        return []
    width = row.top_count
    return [
        TokenLogprob(
            token_id=token_id,
            token=bytes_model.shown(token_id),
            logprob=row.logprobs[i],
            top=[
                TopLogprob(token_id=top_id, token=bytes_model.shown(top_id), logprob=logprob)
                for top_id, logprob in zip(
                    row.top_token_ids[i * width : (i + 1) * width],
                    row.top_logprobs[i * width : (i + 1) * width],
                    strict=True,
                )
            ],
        )
        for i, token_id in enumerate(token_ids)
    ]
