"""What an exception of the engine's means to the caller whose request it met. Pure."""

from __future__ import annotations

from weir_chassis.errors import Internal, InvalidArgument, Unsupported, WeirError, WorkerLost
from weir_executor.trtllm.library import Library

# An exception's text may hold a part of the prompt beyond its first line.
_MAX_CHARS = 200


def refusal(error: Exception, library: Library) -> WeirError:
    """Of a synchronous error of `generate_async`."""
    match error:
        case WeirError():
            return error
        case NotImplementedError():
            return Unsupported(first_line(error))
        case ValueError() | TypeError() | library.RequestError():
            return InvalidArgument("request", first_line(error))
        case RuntimeError():
            return WorkerLost(first_line(error))
    return Internal(first_line(error))


def first_line(error: Exception) -> str:
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}"[:_MAX_CHARS]
