"""From an address to an engine: what is refused at once, what is waited for, and over which wire."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from contract.engine_contract import Listener, prompt, request
from fakes.openengine.double import OpenEngineDouble, Traits
from unit.executor.openengine.making import config, serving
from unit.executor.openengine.test_request import CAN, CONFIG
from weir.openengine.v1 import openengine_pb2 as pb
from weir_executor.openengine.capabilities import WrongServerError
from weir_executor.openengine.load import load_engine, make_info


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        (Traits(revision=2), "schema_revision is 2"),
        (Traits(model="other"), "does not serve 'tiny', but other"),
        (Traits(role=pb.ENGINE_ROLE_DECODE), "ENGINE_ROLE_DECODE"),
    ],
)
def test_the_wrong_server_is_told_apart_at_once(traits: Traits, words: str) -> None:
    with serving(traits) as double, pytest.raises(WrongServerError, match=words):
        load_engine(config(double))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """It speaks gRPC, and nothing that we know."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_a_server_of_another_contract_is_no_server_to_wait_for(silent_server: str) -> None:
    with pytest.raises(WrongServerError, match=r"does not speak openengine\.v1"):
        load_engine(replace(CONFIG, address=silent_server, tls_ca_file=None))


def test_nobody_is_waited_for_as_long_as_was_said() -> None:
    with serving() as double:
        told = config(double, start_seconds=0.3)
    with pytest.raises(TimeoutError):
        load_engine(told)


def test_a_server_that_loads_its_model_is_waited_for() -> None:
    with serving(Traits(health=pb.HEALTH_STATE_STARTING)) as double:
        threading.Timer(0.2, lambda: setattr(double.traits, "health", pb.HEALTH_STATE_READY)).start()
        load_engine(config(double)).close()
        assert double.traits.seen, "it was sent a request before it was used"


def test_limits_are_the_narrower_of_both() -> None:
    info = make_info(replace(CONFIG, max_model_len=1000, max_num_seqs=32, num_blocks=9), CAN)
    assert (info.max_model_len, info.max_num_seqs, info.num_blocks, info.block_size) == (512, 4, 64, 16)
    assert (info.takes_guides, info.max_adapters, info.max_top_logprobs, info.draws_anew) == (True, 2, 20, True)
    told = replace(CAN, max_context=None, max_running=None, num_blocks=None, block_size=None, guides=frozenset())
    info = make_info(replace(CONFIG, max_model_len=1000, max_num_seqs=8, num_blocks=None), told)
    assert (info.max_model_len, info.max_num_seqs, info.num_blocks, info.takes_guides) == (1000, 8, 63 * 8, False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate with")
def test_over_tls_the_server_is_one_that_its_authority_vouches_for(tmp_path: Path) -> None:
    ours, other = (_certificate(tmp_path / name) for name in ("ours", "other"))
    with serving() as double:
        _restart_with(double, ours)
        for ca_file in (None, other[1]):
            with pytest.raises(TimeoutError):
                load_engine(config(double, tls_ca_file=ca_file, start_seconds=0.5))
        engine, heard = load_engine(config(double, tls_ca_file=ours[1])), Listener()
        engine.start(heard)
        engine.submit(request(1, prompt(5), 4))
        assert heard.wait_for_ends(1)[0].error is None
        engine.close()


def _certificate(directory: Path) -> tuple[Path, Path]:
    """A key, and a certificate that vouches for itself."""
    directory.mkdir()
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


def _restart_with(double: OpenEngineDouble, pair: tuple[Path, Path]) -> None:
    key, certificate = (path.read_bytes() for path in pair)
    double.restart_on(0, grpc.ssl_server_credentials([(key, certificate)]))
