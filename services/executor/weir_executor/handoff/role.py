"""Which part of a request an executor is there for."""

from __future__ import annotations

from enum import Enum

from weir_chassis.errors import Unsupported


class Role(Enum):
    """The names are those of `weir.executor.v1.ExecutorRole`."""

    PREFILL = "prefill"  # prompts and first tokens, for others to go on with
    DECODE = "decode"  # all after that; whole requests too, whose prompts nobody has computed for it
    BOTH = "both"

    def check(self, *, hand_off: bool) -> None:
        """Raises Unsupported for a request that is not for this role."""
        if self is Role.PREFILL and not hand_off:
            raise Unsupported("this executor's role is prefill: it takes only requests with hand_off")
        if self is Role.DECODE and hand_off:
            raise Unsupported("hand_off: this executor's role is decode")
