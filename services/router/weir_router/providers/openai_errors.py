"""What a provider's refusal or failure is to us. Pure: from status, headers and body to an error of the table.

    status               to the client                          of the worker
    400, 413, 422        INVALID_ARGUMENT; NOT_FOUND if it      the client's fault; nobody's
                         does not know what it was declared to
    401, 403             WORKER_LOST                            its key or account is refused: it is out
    404, other 3xx, 4xx  WORKER_LOST                            it is not what the configuration says
    408, 5xx             WORKER_LOST                            its own fault
    429, 503, 529        OVERLOADED, with what it says of when  nobody's; it rests until then

Of its own words only names are passed on (type, code, param): a message may repeat a prompt, or our key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from weir_chassis.errors import InvalidArgument, NotFound, Overloaded, WeirError, WorkerLost
from weir_router.providers.errors import Away

# When it is overloaded and does not say for how long, and the most that is believed.
DEFAULT_REST: Final = timedelta(seconds=1)
_MAX_REST: Final = timedelta(minutes=5)
_NO_ROOM: Final = frozenset({"429", "503", "529", "rate_limit_exceeded", "rate_limit_error", "overloaded_error"})
_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_LONG: Final = frozenset({"context_length_exceeded", "string_above_max_length"})
_CLIENTS: Final = frozenset({"400", "413", "422", "invalid_request_error", "BadRequestError", *_LONG})


@dataclass(frozen=True, slots=True)
class _Told:
    """What the error object says, by names alone."""

    type: str = ""
    code: str = ""
    param: str = ""

    def __str__(self) -> str:
        named = (("type", self.type), ("code", self.code), ("param", self.param))
        return ", ".join(f"{name} {value}" for name, value in named if value)


def refused(worker: str, status: int, headers: Mapping[str, str], body: bytes) -> WeirError:
    """For an answer that is not 200."""
    told = _told(_error_object(body))
    message = f"{worker} answered {status}" + (f" ({told})" if str(told) else "")
    lost = {"worker": worker}
    if told.code == "insufficient_quota":  # said with 429, and no rest helps
        return Away(message, metadata=lost)
    if str(status) in _NO_ROOM:
        return Overloaded(message, metadata=lost, retry_after=retry_after(headers))
    if status in (401, 403):
        return Away(message, metadata=lost)
    if str(status) in _CLIENTS:
        return _clients(worker, told, message)
    return WorkerLost(message, metadata=lost)


def failed_within(worker: str, error: Any) -> WeirError:
    """For an error object inside a stream that began as if all were well."""
    told = _told(error)
    message = f"{worker} failed in its stream" + (f" ({told})" if str(told) else "")
    if told.code == "insufficient_quota":
        return Away(message, metadata={"worker": worker})
    if _NO_ROOM & {told.code, told.type}:
        return Overloaded(message, metadata={"worker": worker}, retry_after=DEFAULT_REST)
    if _CLIENTS & {told.code, told.type}:
        return _clients(worker, told, message)
    return WorkerLost(message, metadata={"worker": worker})


def retry_after(headers: Mapping[str, str]) -> timedelta:
    """`retry-after-ms`, or `Retry-After` in seconds (RFC 9110, §10.2.3; a date is not believed). Bounded."""
    for name, unit in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if seconds >= 0:  # not NaN
            return min(max(timedelta(0), timedelta(seconds=min(seconds, 1e6))), _MAX_REST)
    return DEFAULT_REST


def _clients(worker: str, told: _Told, message: str) -> WeirError:
    if told.code in ("unsupported_parameter", "unsupported_value"):
        # It was believed to have that; another worker may.
        return NotFound(told.param, message, metadata={"worker": worker})
    field = "prompt" if told.code in _LONG or told.param in ("messages", "prompt") else told.param or "request"
    return InvalidArgument(field, message, metadata={"worker": worker})


def _error_object(body: bytes) -> Any:
    try:
        answer = json.loads(body)
    except ValueError:  # a proxy's page, say
        return None
    return answer.get("error", answer) if isinstance(answer, dict) else None


def _told(error: Any) -> _Told:
    if not isinstance(error, dict):
        return _Told()
    return _Told(*(_name(error.get(key)) for key in ("type", "code", "param")))


def _name(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) and _NAME.fullmatch(str(value)) else ""
