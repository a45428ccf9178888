"""A NATS user's credentials file, as `nsc` writes it: a JWT, and the seed of the key that signs the server's challenge.

https://docs.nats.io/using-nats/developer/connecting/creds. It is read here, for every connection anew, because nats-py
looks for the JWT's first line without an end in a file that has none, and a file that is just being replaced has none.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Final

# A JWT with some hundred permissions takes a few KiB; a mistaken path to something big is not read.
_MAX_FILE_BYTES: Final = 64 * 1024
_PART: Final = r"-{3,}\s*BEGIN %s\s*-{3,}\s+([A-Za-z0-9_.=-]+?)\s+-{3,}\s*END %s\s*-{3,}"
_JWT: Final = re.compile(_PART % (("NATS USER JWT",) * 2))
_SEED: Final = re.compile(_PART % (("USER NKEY SEED",) * 2))


class NatsCredentials:
    """What nats-py asks of a user while it connects."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def jwt(self) -> bytes:
        """Raises ValueError, OSError."""
        return self._part(_JWT, "a user's JWT").encode()

    def sign(self, nonce: str) -> bytes:
        """The challenge's signature in base64. Raises ValueError, OSError."""
        from nkeys import NkeysError, from_seed  # type: ignore[import-untyped]  # noqa: PLC0415  # with weir[nats]

        try:
            key = from_seed(bytearray(self._part(_SEED, "a key's seed"), "ascii"))
        except NkeysError as error:
            raise self._useless("its seed is none") from error
        return base64.b64encode(key.sign(nonce.encode()))

    def _part(self, pattern: re.Pattern[str], what: str) -> str:
        with self._path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode("ascii", errors="replace")
        found = pattern.search(text)
        if found is None:
            raise self._useless(f"{what} is not in it")
        return found[1]

    def _useless(self, why: str) -> ValueError:
        """Nothing of what is in the file is in the message."""
        return ValueError(f"NATS_CREDENTIALS_FILE: {self._path}: {why}")
