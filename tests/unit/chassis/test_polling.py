from __future__ import annotations

import subprocess
import sys

from weir_chassis.polling import poll_with_one_thread


def test_who_has_chosen_already_is_left_alone() -> None:
    chosen, open_ = {"GRPC_EXPERIMENTS": "mine"}, dict[str, str]()
    poll_with_one_thread(chosen)
    poll_with_one_thread(open_)
    assert chosen == {"GRPC_EXPERIMENTS": "mine"}
    assert open_ == {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}


def test_the_module_imports_no_grpc_and_what_it_says_is_known_to_the_grpc_that_is_installed() -> None:
    code = (
        "import sys; from weir_chassis.polling import poll_with_one_thread; poll_with_one_thread();"
        "assert 'grpc' not in sys.modules; import grpc; grpc.insecure_channel('127.0.0.1:1').close()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "experiment" not in told.stderr.lower()
