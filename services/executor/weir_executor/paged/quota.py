"""What a request must satisfy to run within its tenant's blocks."""

from __future__ import annotations

from weir_chassis.errors import QuotaExceeded
from weir_executor.engine import EngineInfo
from weir_executor.paged.tenants import TenantLimits
from weir_executor.request import GenerationRequest


def check_quota(request: GenerationRequest, limits: TenantLimits, info: EngineInfo) -> None:
    """Raise QuotaExceeded for a request that could never run to its end within its tenant's blocks."""
    # The last token is drawn and never computed; one that is handed off draws no other here.
    longest = len(request.token_ids) + (0 if request.hand_off else max(0, request.max_tokens - 1))
    wanted = -(-longest // info.block_size)
    if limits.max_blocks is not None and wanted > limits.max_blocks:
        tenant = repr(request.tenant) if request.tenant else "(none)"
        raise QuotaExceeded(
            f"blocks of tenant {tenant}",
            f"a sequence of {longest} tokens needs {wanted} blocks, the limit is {limits.max_blocks}",
        )
