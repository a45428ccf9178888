from __future__ import annotations

import base64
from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import pytest

from unit.chassis.nats_accounts import Accounts
from weir_chassis.nats_credentials import NatsCredentials


@pytest.fixture
def right(tmp_path: Path) -> str:
    return Accounts(tmp_path / "accounts").credentials("weir").read_text()


def test_the_token_and_a_signature_that_its_key_verifies(tmp_path: Path, right: str) -> None:
    path = tmp_path / "weir.creds"
    path.write_text(right.replace("\n", "\r\n"))
    credentials = NatsCredentials(path)
    assert credentials.jwt().decode() == right.splitlines()[1]
    key = nkeys.from_seed(bytearray(right.rstrip().splitlines()[-2], "ascii"))
    assert key.verify(b"nonce", base64.b64decode(credentials.sign("nonce")))


def test_one_that_is_cut_off_anywhere_is_none_and_says_nothing_of_what_is_in_it(tmp_path: Path, right: str) -> None:
    path = tmp_path / "weir.creds"
    whole = right.rstrip()
    for length in range(0, len(whole) - 3, 7):
        path.write_text(whole[:length])
        with pytest.raises(ValueError, match=r"^NATS_CREDENTIALS_FILE: ") as caught:
            NatsCredentials(path).sign("nonce")
        assert whole.splitlines()[1][:20] not in str(caught.value)


@pytest.mark.parametrize("text", ["", "hello\n", "-----BEGIN NATS USER JWT-----\n", "x" * 200_000, "\0" * 100])
def test_another_file_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "weir.creds"
    path.write_text(text)
    for ask in (NatsCredentials(path).jwt, lambda: NatsCredentials(path).sign("nonce")):
        with pytest.raises(ValueError, match="is not in it"):
            ask()


def test_a_seed_that_is_none(tmp_path: Path, right: str) -> None:
    path = tmp_path / "weir.creds"
    seed = right.rstrip().splitlines()[-2]
    for wrong in (seed[:-4], "SUAAAA", seed[0] + "Z" + seed[2:], "1" * len(seed)):
        path.write_text(right.replace(seed, wrong))
        with pytest.raises(ValueError, match="NATS_CREDENTIALS_FILE"):
            NatsCredentials(path).sign("nonce")
