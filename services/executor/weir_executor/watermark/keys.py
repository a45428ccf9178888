"""The secret that watermarks are made with, and each tenant's key out of it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

KEY_BYTES = 16
# Fewer could be guessed.
_MIN_SECRET_BYTES = 16
# A file that is larger is not the one that was meant.
_MAX_SECRET_BYTES = 4096


class WatermarkKeys:
    """Says nothing of itself in a log."""

    def __init__(self, secret: bytes) -> None:
        # BLAKE2b takes keys of up to 64 bytes; of a longer secret it takes the hash.
        self._secret = blake2b(secret, digest_size=64, person=b"weir.watermark.s").digest()

    def of(self, tenant: str) -> bytes:
        return blake2b(tenant.encode(), key=self._secret, digest_size=KEY_BYTES, person=b"weir.watermark.t").digest()


def read_keys(path: Path) -> WatermarkKeys:
    """White space around the secret does not count. Raises OSError, and ValueError for what is no secret."""
    secret = path.read_bytes().strip()
    if not _MIN_SECRET_BYTES <= len(secret) <= _MAX_SECRET_BYTES:
        raise ValueError(f"a secret has {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} bytes, this has {len(secret)}")
    return WatermarkKeys(secret)
