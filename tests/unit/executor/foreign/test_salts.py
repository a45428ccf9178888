from __future__ import annotations

import pytest

from contract.engine_contract import hashes, prompt, request
from weir_executor.foreign.salts import private_salt, scope_of, shared_salt, shares_blocks
from weir_executor.foreign.seeds import seed_of
from weir_executor.foreign.words import first_line

SCOPE = b"s" * 16


def test_a_shared_salt_names_its_scope_and_nothing_else_does() -> None:
    assert scope_of(shared_salt(SCOPE)) == SCOPE
    for wrong in (private_salt(7), "z" * 32, "", None, 7):
        assert scope_of(wrong) is None


@pytest.mark.parametrize(
    ("length", "scope", "named", "shares"),
    [(40, SCOPE, True, True), (40, SCOPE, False, False), (5, SCOPE, False, True), (40, b"", True, False)],
)
def test_who_shares(length: int, scope: bytes, named: bool, shares: bool) -> None:
    known = hashes(prompt(length), 16) if named else ()
    assert shares_blocks(request(1, prompt(length), block_hashes=known, cache_scope=scope), 16) is shares


def test_outputs_and_resumed_ones_draw_with_other_numbers() -> None:
    assert seed_of(2**64 - 1, 0, 0) == 2**63 - 1
    drawn = {seed_of(9, index, resumed) for index in range(4) for resumed in range(4)}
    assert len(drawn) == 16
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_a_text_is_cut_to_its_first_line() -> None:
    assert first_line("one\ntwo") == "one"
    assert first_line("") == ""
    assert len(first_line("x" * 999)) == 200
