from __future__ import annotations

from weir_executor.trtllm.strays import Strays


class Result:
    aborts = 0

    def abort(self) -> None:
        self.aborts += 1


def test_a_stray_is_aborted_once_and_keeps_its_place_until_it_is_removed() -> None:
    strays, result = Strays(), Result()
    strays.add(result)
    assert result in strays
    assert result.aborts == 0
    strays.abort(result)
    strays.abort(result)
    assert (result.aborts, len(strays)) == (1, 1)
    assert strays.remove(result)
    assert not strays.remove(result)
    assert len(strays) == 0
