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


# Whoever derives from these is called by the engine: with the parameters that its methods have.
_HOOKED = frozenset({"KvCacheConnectorScheduler", "KvCacheConnectorWorker"})


@dataclass
class Uses:
    """`imports`: full names. `keywords`: by the name of what is called. `words`: all attributes and strings. `hooks`:
    parameters of methods that the engine calls, by the method's name."""

    imports: set[str] = field(default_factory=set)
    keywords: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    words: set[str] = field(default_factory=set)
    hooks: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


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
    disagreements += [
        f"{hook}({parameter}=…): they are called with it, and the surface does not know it"
        for hook, known in _hooks(ours).items()
        for parameter in sorted(uses.hooks.get(hook, set()) - known)
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
        yield name, leaf in imported or leaf in uses.words or leaf in uses.hooks
    for module, names in ours.attributes.items():
        for each in names.all:
            yield f"{module}.{each}", f"{module}.{each}" in uses.imports
    for name, names in (*ours.callables.items(), *ours.fields.items()):
        leaf = name.rpartition(".")[2]
        for each in names.all:
            taken = uses.keywords.get(leaf, set()) | uses.hooks.get(leaf, set())
            yield f"{name}({each}=)", each in taken or each in uses.words
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


def _hooks(ours: Surface) -> Mapping[str, frozenset[str]]:
    return {
        name.rpartition(".")[2]: names.all for name, names in ours.callables.items() if name.split(".")[-2] in _HOOKED
    }


def _read_source(text: str, uses: Uses) -> None:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("tensorrt_llm"):
                uses.imports |= {f"{module}.{alias.name}" for alias in names}
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), keywords=keywords):
                uses.keywords[called] |= {keyword.arg for keyword in keywords if keyword.arg is not None}
                uses.words.add(called)
            case ast.ClassDef(bases=bases, body=body) if any(getattr(base, "id", "") in _HOOKED for base in bases):
                for each in body:
                    if isinstance(each, ast.FunctionDef):
                        uses.hooks[each.name] |= {argument.arg for argument in each.args.args[1:]}
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
