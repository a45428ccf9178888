from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.postprocess_contract import write_tokenizer
from weir.inference.v1.model_revision import tokenizer_hash
from weir_chassis.inmemory import InMemoryChannel, InMemoryServer
from weir_chassis.server import EXIT_USAGE, announce, new_chassis, placed, run
from weir_chassis.settings import SettingsError
from weir_postprocess.service import SERVICE, SERVICE_NAME, build
from weir_postprocess.settings import PostprocessSettings


async def test_models_are_healthy_and_named_with_their_tokenizer(tmp_path: Path) -> None:
    settings = PostprocessSettings(models={"a": write_tokenizer(tmp_path), "b": tmp_path})
    chassis, server = new_chassis("postprocess"), InMemoryServer()
    async with placed(SERVICE, settings, chassis, server) as servicers:
        announce(chassis, servicers)
        await server.start()
        health = health_pb2_grpc.HealthStub(InMemoryChannel(server))
        for name in ("", SERVICE_NAME, "model:a", "model:b"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await server.stop(None)
    labels = {"model": "b", "tokenizer_hash": tokenizer_hash(tmp_path)}
    assert chassis.metrics.registry.get_sample_value("weir_postprocess_model_info", labels) == 1


async def test_a_tokenizer_that_cannot_be_served_names_the_setting(tmp_path: Path) -> None:
    settings = PostprocessSettings(models={"gone": tmp_path / "nowhere"})
    with pytest.raises(SettingsError, match=r"WEIR_POSTPROCESS_MODELS: gone: .*nowhere"):
        async with build(settings, new_chassis("postprocess")):
            pass


def test_the_stream_has_no_default_deadline() -> None:
    assert SERVICE.unbounded == {"/weir.postprocess.v1.PostprocessService/Postprocess"}


@pytest.mark.parametrize(("variable", "said"), [("WEIR_POSTPROCESS_MODLES", "did you mean"), ("OTHER", "MODELS")])
def test_the_command_says_what_is_wrong_with_the_environment(
    variable: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "a=/x")
    assert run(SERVICE) == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_no_torch_and_no_other_service_is_imported() -> None:
    code = (
        "import sys, weir_postprocess.__main__; "
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers', 'numpy', 'weir_router', "
        "'weir_tokenizer', 'weir_executor', 'weir_kvstore'})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""
