"""What is imported, when, and by whom."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.trtllm import llm, package, params, results
from weir_executor.trtllm.library import load_library
from weir_executor.trtllm.probe import UnknownVersionError, probe
from weir_executor.trtllm.surface import missing

TRTLLM = Path(sys.modules[load_library.__module__].__file__ or "").parent


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`tensorrt_llm` can be imported from here."""
    monkeypatch.setenv("WEIR_EXECUTOR_PORT", "1")
    package.install(tmp_path / "site", tmp_path / "faults")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site/tensorrt_llm"
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


def test_every_name_is_looked_up_where_it_is_published(site: Path) -> None:
    library = load_library()
    assert library.version == "1.2.1"
    assert issubclass(library.LLM, llm.LLM)
    for name in ("SamplingParams", "GuidedDecodingParams", "KvCacheConfig", "SchedulerConfig", "LoraConfig"):
        assert getattr(library, name) is getattr(params, name)
    assert (library.RequestError, library.EngineDeadError) == (results.RequestError, results.EngineDeadError)
    assert library.KvCacheRetentionConfig is params.KvCacheRetentionConfig
    assert library.make_speculation is not None
    assert library.make_speculation({"decoding_type": "MTP"}).decoding_type == "MTP"
    probe(library, allow_unknown=False)


def test_what_a_version_may_lack_is_none(site: Path) -> None:
    for module, gone in (
        ("executor/utils", "EngineDeadError, "),
        ("llmapi/__init__", "KvCacheRetentionConfig, "),
        ("llmapi/llm_args", "from fakes.trtllm.params import DecodingBaseConfig"),
    ):
        file = site / f"{module}.py"
        file.write_text(file.read_text().replace(gone, ""))
    library = load_library()
    assert (library.EngineDeadError, library.KvCacheRetentionConfig, library.make_speculation) == (None, None, None)
    assert not probe(library, allow_unknown=False).retention


def test_a_version_that_lacks_what_is_needed_is_refused_by_name_unless_it_is_to_be_tried(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = load_library()
    file = site / "__init__.py"
    other = "decimal import Context as SamplingParams"
    file.write_text(file.read_text().replace("fakes.trtllm.params import SamplingParams", other))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]
    assert "tensorrt_llm.SamplingParams has no end_id" in missing()
    with pytest.raises(UnknownVersionError, match=r"SamplingParams has no add_special_tokens.*ALLOW_UNKNOWN_VERSION"):
        probe(library, allow_unknown=False)
    probe(library, allow_unknown=True)
    assert "SamplingParams has no end_id" in caplog.text


def test_a_connectors_names_are_looked_for_where_there_is_one(site: Path) -> None:
    assert not (site / "_torch").exists()
    with pytest.raises(UnknownVersionError, match="KvCacheConnectorScheduler"):
        probe(load_library(), allow_unknown=False, with_connector=True)


def test_it_is_imported_when_it_is_asked_for_and_by_one_module() -> None:
    """So that all else can be read, tested and served without it, and without torch."""
    modules = [f"weir_executor.trtllm.{path.stem}" for path in TRTLLM.glob("*.py") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}\nprint({{'torch', 'tensorrt_llm'}} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.strip() == "set()"
    importing = {path.name for path in TRTLLM.rglob("*.py") if 'find_name("tensorrt_llm' in path.read_text()}
    assert importing == {"library.py"}
    named = [path.name for path in TRTLLM.parents[1].rglob("*.py") if "import tensorrt_llm" in path.read_text()]
    assert not named
