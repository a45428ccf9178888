"""What other public packages use of TensorRT-LLM's interface, read from their source and never imported.

    python -m oracles.trtllm_names DIRECTORY        of wheels

They run against the real thing. A keyword that they pass to what we use too, and that we have never heard of, is a
disagreement; of our own names those that they use as we do are confirmed, and the others are told.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fakes.trtllm import llm, params
from weir_executor.trtllm.surface import Surface, field_defaults, parameters, surface

# By the class's or the method's own name, as calls have it.
_KNOWN: Mapping[str, frozenset[str]] = {
    kind.__name__: frozenset(field_defaults(kind))
    for kind in (
        params.SamplingParams,
        params.GuidedDecodingParams,
        params.KvCacheConfig,
        params.SchedulerConfig,
        params.DisaggregatedParams,
        params.KvCacheConnectorConfig,
        params.LoRARequest,
    )
} | {
    name: parameters(getattr(llm.LLM, name))
    for name in ("generate_async", "get_stats_async", "get_kv_cache_events_async")
}


@dataclass
class Uses:
    """`imports`: full names. `keywords`: by the name of what is called. `words`: all attributes and strings."""

    imports: set[str] = field(default_factory=set)
    keywords: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    words: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Report:
    disagreements: list[str]
    confirmed: list[str]
    unconfirmed: list[str]


def read(directory: Path) -> Uses:
    """Of all wheels in it. Only files that are about TensorRT-LLM, and no tests of theirs."""
    uses = Uses()
    for wheel in sorted(directory.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".py") and ("trtllm" in name or "tensorrt_llm" in name) and "/tests/" not in name:
                    _read_source(archive.read(name).decode(errors="replace"), uses)
    return uses


def compare(uses: Uses, ours: Surface) -> Report:
    disagreements = [
        f"{called}({keyword}=…): they pass it, and neither the surface nor the fake knows it"
        for called, keywords in uses.keywords.items()
        if called in _KNOWN
        for keyword in sorted(keywords - _KNOWN[called] - _optional(called, ours))
    ]
    confirmed, unconfirmed = list[str](), list[str]()
    for name, is_used in _names(uses, ours):
        (confirmed if is_used else unconfirmed).append(name)
    return Report(sorted(disagreements), sorted(confirmed), sorted(unconfirmed))


def _names(uses: Uses, ours: Surface) -> Iterator[tuple[str, bool]]:
    """Each of ours, and whether they use it too."""
    imported = {name.rpartition(".")[2] for name in uses.imports}
    for name in (*ours.callables, *ours.fields):
        leaf = name.rpartition(".")[2]
        yield name, leaf in imported or leaf in uses.words
    for module, names in ours.attributes.items():
        for each in names.all:
            yield f"{module}.{each}", f"{module}.{each}" in uses.imports
    for name, names in (*ours.callables.items(), *ours.fields.items()):
        leaf = name.rpartition(".")[2]
        for each in names.all:
            yield f"{name}({each}=)", each in uses.keywords.get(leaf, ()) or each in uses.words
    for kind, attributes in ours.objects.items():
        for each in attributes:
            yield f"{kind}.{each}", each in uses.words
    for what, keys in ours.keys.items():
        for each in keys:
            yield f"{what}[{each!r}]", each in uses.words


def _optional(called: str, ours: Surface) -> frozenset[str]:
    found = [
        names.all for name, names in (*ours.callables.items(), *ours.fields.items()) if name.endswith(f".{called}")
    ]
    return frozenset().union(*found)


def _read_source(text: str, uses: Uses) -> None:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("tensorrt_llm"):
                uses.imports |= {f"{module}.{alias.name}" for alias in names}
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), keywords=keywords):
                uses.keywords[called] |= {keyword.arg for keyword in keywords if keyword.arg is not None}
                uses.words.add(called)
            case ast.Attribute(attr=attribute):
                uses.words.add(attribute)
            case ast.Constant(value=str(value)):
                uses.words.add(value)
            case ast.keyword(arg=str(argument)):
                uses.words.add(argument)


def main() -> int:
    report = compare(read(Path(sys.argv[1])), surface())
    print(f"confirmed by others   {len(report.confirmed)}")
    print(f"used by us alone      {len(report.unconfirmed)}: {', '.join(report.unconfirmed)}")
    print(f"disagreements         {len(report.disagreements)}", *report.disagreements, sep="\n    ")
    return bool(report.disagreements)


if __name__ == "__main__":
    sys.exit(main())
