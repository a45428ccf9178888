"""The compiled libraries, loaded. A call into one releases the GIL."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_char_p
from functools import cache
from pathlib import Path
from typing import Any

from weir_executor.native.build import NativeUnavailableError, library_path

# By name: what a function returns, and what it takes.
Functions = Mapping[str, tuple[Any, tuple[Any, ...]]]
# Of every library, see `src/isa.h`.
_COMMON: Functions = {"weir_isa": (c_char_p, (c_char_p,))}


def open_library(name: str, functions: Functions) -> ctypes.CDLL:
    """Compiled first where it has to be. Raises `NativeUnavailableError`."""
    path = library_path(name)
    try:
        library = _loaded(path)
        for function_name, (result, arguments) in {**_COMMON, **functions}.items():
            function = getattr(library, function_name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativeUnavailableError(f"{path} does not load: {error}") from error
    return library


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def best_isa(library: ctypes.CDLL, wanted: str = "") -> str:
    """The instruction set that will run here: the one wanted, or the best. Raises `NativeUnavailableError`."""
    found: bytes | None = library.weir_isa(wanted.encode())
    if found is None:
        raise NativeUnavailableError(f"this processor does not run {wanted!r}")
    return found.decode()
