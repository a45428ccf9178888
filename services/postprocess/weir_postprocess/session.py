"""The open requests of one stream: a message in, at most one message out. Does no I/O.

    opens      → a request with its outputs, or why not
    tokens     → rows to their outputs
    finishes   → outputs end
    closes     → forgotten
                 then, for each output touched: what it gives out, and whether it has finished

Unknown handles, and outputs that have finished, are ignored: a close, a failure or a stop string may cross them on the
wire.
A request is forgotten, with all that it held, when its last output finishes, when it fails, and when it is closed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.stream_pb2 import Delta
from weir.postprocess.v1.postprocess_pb2 import (
    Finish,
    Open,
    PostprocessOutputFinished,
    PostprocessRequest,
    PostprocessResponse,
    RequestFailed,
)
from weir_chassis.errors import AlreadyExists, Draining, InvalidArgument, ModelNotFound, Overloaded, WeirError
from weir_chassis.status import to_failure
from weir_postprocess.batch import Row, rows_that_end_without_text, token_rows
from weir_postprocess.request import Request, open_request
from weir_postprocess.vocabulary import Vocabulary

# Outputs that a message touched, by handle and index, and why the executor ended them, if it did.
_Touched = dict[tuple[int, int], "FinishReason.ValueType | None"]


@dataclass(frozen=True, slots=True)
class Changes:
    """Requests that came and went."""

    opened: Sequence[int]
    forgotten: Sequence[int]


class Session:
    """The state of one stream. Not for two threads at once."""

    def __init__(self, vocabularies: Mapping[str, Vocabulary], max_open_requests: int):
        self._vocabularies = vocabularies
        self._max_open_requests = max_open_requests
        self._requests: dict[int, Request] = {}
        self._opened: list[int] = []
        self._forgotten: list[int] = []
        # Nothing new is opened any more.
        self.draining = False

    @property
    def handles(self) -> Collection[int]:
        """The requests that are open."""
        return self._requests.keys()

    def apply(self, message: PostprocessRequest) -> PostprocessResponse | None:
        """Does what the message says; returns what there is to say to that.

        Raises InvalidArgument, before anything has changed, when the columns of its tokens do not fit each other.
        """
        rows = token_rows(message.tokens)
        response, touched = PostprocessResponse(), _Touched()
        for opened in message.opens:
            self._open(opened, response)
        without_text = rows_that_end_without_text(rows, message.finishes)
        for i, row in enumerate(rows):
            self._add(row, i in without_text, touched, response)
        for finish in message.finishes:
            self._finish(finish, touched, response)
        for handle in message.closed_handles:
            self._forget(handle)
        for (handle, output_index), reason in touched.items():
            self._release(handle, output_index, reason, response)
        return response if response.deltas or response.finished or response.failed else None

    def take_changes(self) -> Changes:
        """What changed since this was last asked."""
        changes = Changes(self._opened, self._forgotten)
        self._opened, self._forgotten = [], []
        return changes

    def check_integrity(self) -> None:
        for request in self._requests.values():
            assert request.outputs, "a request without a live output is forgotten"
            assert all(index < request.n and not output.ended for index, output in request.outputs.items())

    def _open(self, opened: Open, response: PostprocessResponse) -> None:
        try:
            request = self._new_request(opened)
        except WeirError as error:
            # A request that is open under this handle goes on: only this `Open` is refused.
            response.failed.append(RequestFailed(handle=opened.handle, failure=to_failure(error)))
            return
        self._requests[opened.handle] = request
        self._opened.append(opened.handle)

    def _new_request(self, opened: Open) -> Request:
        if self.draining:
            raise Draining("the service is shutting down; another replica takes this request")
        if opened.handle in self._requests:
            raise AlreadyExists(str(opened.handle), f"handle {opened.handle} is that of an open request")
        if len(self._requests) >= self._max_open_requests:
            raise Overloaded(f"{len(self._requests)} requests are open on this stream, which is the limit")
        vocabulary = self._vocabularies.get(opened.model)
        if vocabulary is None:
            raise ModelNotFound(opened.model, list(self._vocabularies))
        return open_request(opened, vocabulary)

    def _add(self, row: Row, ends_without_text: bool, touched: _Touched, response: PostprocessResponse) -> None:
        request = self._requests.get(row.handle)
        if request is None:
            return
        try:
            output = request.live_output(row.output_index)
            if output is None:
                return
            logprobs = request.accept(output, row)
        except WeirError as error:
            self._fail(row.handle, error, response)
            return
        output.add(row.token_ids, logprobs, textless_last=ends_without_text)
        touched[row.handle, row.output_index] = None

    def _finish(self, finish: Finish, touched: _Touched, response: PostprocessResponse) -> None:
        request = self._requests.get(finish.handle)
        if request is None:
            return
        try:
            output = request.live_output(finish.output_index)
            if finish.finish_reason not in _FINISH_REASONS:
                raise InvalidArgument("finish_reason", f"{finish.finish_reason} is none")
        except WeirError as error:
            self._fail(finish.handle, error, response)
            return
        if output is not None:
            output.end()
            touched[finish.handle, finish.output_index] = finish.finish_reason

    def _release(
        self,
        handle: int,
        output_index: int,
        reason: FinishReason.ValueType | None,
        response: PostprocessResponse,
    ) -> None:
        request = self._requests.get(handle)
        if request is None:  # it failed or was closed after it was touched
            return
        output = request.outputs[output_index]
        if released := output.take():
            response.handles.append(handle)
            response.deltas.append(
                Delta(
                    output_index=output_index,
                    first_token_index=released.first_token_index,
                    token_ids=released.token_ids,
                    text=released.text,
                    logprobs=released.logprobs,
                )
            )
        if output.ended:
            response.finished.append(_finished(handle, output_index, reason, output.stop))
            del request.outputs[output_index]
            if not request.outputs:
                self._forget(handle)

    def _fail(self, handle: int, error: WeirError, response: PostprocessResponse) -> None:
        response.failed.append(RequestFailed(handle=handle, failure=to_failure(error)))
        self._forget(handle)

    def _forget(self, handle: int) -> None:
        if self._requests.pop(handle, None) is not None:
            self._forgotten.append(handle)


_FINISH_REASONS: Final = frozenset(FinishReason.values()) - {FinishReason.FINISH_REASON_UNSPECIFIED}


def _finished(
    handle: int, output_index: int, reason: FinishReason.ValueType | None, stop: str | None
) -> PostprocessOutputFinished:
    if stop is not None:
        reason = FinishReason.FINISH_REASON_STOP
    assert reason is not None, "an output ends by a stop string or by the executor's word"
    return PostprocessOutputFinished(handle=handle, output_index=output_index, finish_reason=reason, stop=stop)
