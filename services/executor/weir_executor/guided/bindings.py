"""xgrammar's compiled module by itself.

Its Python package adds wrappers of one line each, and imports torch and transformers to do so: a second and 200 MB in
every process that compiles guides. The module needs neither. Its layout is that of the version that is pinned.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_NAME = "xgrammar.xgrammar_bindings"


@cache
def bindings() -> Any:
    """The module, as `import xgrammar` would find it or has found it. Raises ImportError."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    path = _path()
    spec = spec_from_file_location(_NAME, path, loader=ExtensionFileLoader(_NAME, str(path)))
    assert spec is not None, path
    assert spec.loader is not None, path
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    # Whoever imports the package later must get this very module: two would not know each other's objects.
    sys.modules[_NAME] = module
    return module


def _path() -> Path:
    package = find_spec("xgrammar")
    if package is None or not package.submodule_search_locations:
        raise ImportError("xgrammar is not installed")
    for folder in package.submodule_search_locations:
        for suffix in EXTENSION_SUFFIXES:
            path = Path(folder) / f"xgrammar_bindings{suffix}"
            if path.is_file():
                return path
    raise ImportError("xgrammar has no xgrammar_bindings: another version than the one that is pinned?")
