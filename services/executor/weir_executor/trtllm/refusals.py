"""What an exception of the engine's means to the caller whose request it met. Pure."""

from __future__ import annotations

from weir_chassis.errors import Internal, InvalidArgument, Unsupported, WeirError, WorkerLost
from weir_executor.foreign import words
from weir_executor.trtllm.library import Library


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
    return words.first_line(f"{type(error).__name__}: {error}")
