"""The stack, by `docker compose`. `DOCKER` names the command; which engine it reaches is its own affair."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parents[3] / "deploy/compose/compose.yaml"
# A project of its own: who runs the stack already keeps it.
_PROJECT = "weir-check"
_SECONDS = 300.0


class Stack:
    def __init__(self, router: str) -> None:
        """`router`: host:port to publish it at."""
        self.router = router
        self._docker = os.environ.get("DOCKER", "docker")

    def compose(self, *arguments: str, stdin: str | None = None) -> str:
        return self._run("compose", "--project-name", _PROJECT, "--file", str(_FILE), *arguments, stdin=stdin)

    def python(self, service: str, *arguments: str, stdin: str | None = None) -> str:
        """In a service's container, as its own user."""
        return self.compose("exec", "--no-TTY", service, "python3", *arguments, stdin=stdin)

    def state(self, service: str) -> Mapping[str, Any]:
        (container,) = json.loads(self._run("inspect", self.compose("ps", "--all", "--quiet", service).strip()))
        return {**container["State"], "Restarts": container["RestartCount"], "Image": container["Config"]["Image"]}

    def kill(self, service: str) -> None:
        """SIGKILL from outside: `docker kill` would be its operator's wish, after which nobody starts it again."""
        state = self.state(service)
        program = f"import os; os.kill({state['Pid']}, 9)"
        host = ("--pid", "host", "--user", "0", "--entrypoint", "python3")
        self._run("run", "--rm", *host, str(state["Image"]), "-c", program)

    def _run(self, *arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [self._docker, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env={**os.environ, "WEIR_PUBLISH": self.router},
        )
        if done.returncode:
            raise SystemExit(f"{self._docker} {' '.join(arguments)}:\n{done.stderr[-2000:]}")
        return done.stdout
