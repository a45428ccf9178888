"""One client's request, valid and complete, whichever of the two doors it came through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from weir.inference.v1.chat_pb2 import ChatPrompt
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir_router.fleet.model_version import Version
from weir_router.keeping import NOT_KEPT, Keeping
from weir_router.regions import Residency


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str
    # None: the tokenizer's own default.
    add_special_tokens: bool | None


@dataclass(frozen=True, slots=True)
class TokenIdsPrompt:
    token_ids: Sequence[int]


Prompt = TextPrompt | TokenIdsPrompt | ChatPrompt
# Instance ids of the routers through which a request has come, the first one first.
Via = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, as the door has found."""

    residency: Residency
    tenant: str = ""
    subject: str = ""
    via: Via = ()


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """`sampling` always has a seed and `n`; its other fields and `stopping` stay as the client left them."""

    request_id: str
    # Empty: the only model there is.
    model: str
    prompt: Prompt
    sampling: SamplingParameters
    stopping: StoppingConditions
    # Higher goes first.
    priority: int
    # Whose share and quotas apply at the executor; empty: nobody's in particular.
    tenant: str
    # Where it may go. Nothing of it reaches a worker elsewhere.
    residency: Residency
    # A name; empty: none.
    adapter: str
    # None: postprocess's own default.
    skip_special_tokens: bool | None
    # As the client left it: all of it may be unset.
    routing: RoutingOptions = field(default_factory=RoutingOptions)
    # Whom experiments are about, within the tenant; empty: nobody in particular.
    subject: str = ""
    # Whether the client has named the seed itself.
    seeded: bool = False
    via: Via = ()
    keeping: Keeping = NOT_KEPT

    @property
    def n(self) -> int:
        return self.sampling.n


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """`block_hashes`: 16 bytes for each full block of `block_size` tokens, of this very version, adapter and salt."""

    version: Version
    token_ids: Sequence[int]
    block_hashes: bytes
    block_size: int
    # A fingerprint; empty: none.
    adapter: str = ""
    # Seeds the hashes: tenants with different ones share no blocks.
    tenant_salt: str = ""
    # Of a prompt that nobody here could encode, for whom it is enough to know the text.
    guessed_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) or self.guessed_tokens


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """`token_ids`: one list for each input, of this very version. `adapter`: a fingerprint; empty: none."""

    version: Version
    token_ids: Sequence[Sequence[int]]
    adapter: str = ""
    # As in `EncodedPrompt`.
    tenant_salt: str = ""
