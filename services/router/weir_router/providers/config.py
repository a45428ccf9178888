"""`[[providers]]` and `[[routers]]` of the routing file: workers that take whole requests, text to text. Pure.

[[providers]]                     # an OpenAI-compatible endpoint; as a worker it is called "provider:elsewhere"
name = "elsewhere"
base_url = "https://api.example.com/v1"
api_key_file = "/run/secrets/elsewhere"     # read again at every probe
models = { demo = "example-large" }         # the name that clients use here = the provider's own
region = "eu-west"                          # empty: in none, so that no request goes there which must stay in one
capabilities = ["chat", "completions", "n", "logprobs", "seed", "tools", "json_schema"]
use = "overflow"                            # or "ranked", the default: the model's policy ranks it with the executors
overflow_above_tokens = 8192                # each executor owes so many tokens before it is asked

[providers.price]                           # for a million tokens, in millionths of a unit of the currency
prompt_micros = 500_000
cached_prompt_micros = 250_000
completion_micros = 1_500_000
currency = "EUR"

[[routers]]                       # another Weir router: "router:us"
name = "us"
address = "router.us.example.com:7700"
region = "us-east"
use = "overflow"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from weir_chassis.toml_config import Table
from weir_router.fleet.views import Price

# Each costs a connection and a task that probes.
_MAX_EXTERNALS: Final = 64
_MAX_MODELS: Final = 256
_MAX_HEADERS: Final = 16

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
ModelName = Annotated[str, Field(min_length=1, max_length=128)]
Seconds = Annotated[float, Field(gt=0.0, le=600.0)]

# What a request may need that not every endpoint can do: `needs.py` says when. Each is a field of the protocol, or one
# that open servers add to it.
Capability = Literal[
    "chat",
    "completions",
    "n",
    "logprobs",
    "seed",
    "tools",
    "json_object",
    "json_schema",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_in_output",
    "many_stops",
]


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is no http:// or https:// address")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("has more than a host, a port and a path; a key goes into api_key_file")
    return url.rstrip("/")


class PriceTable(Table):
    prompt_micros: int = Field(ge=0)
    cached_prompt_micros: int | None = Field(default=None, ge=0, description="unset: as any token of the prompt")
    completion_micros: int = Field(ge=0)
    currency: str = Field(default="", pattern=r"^([A-Z]{3})?$", description="ISO 4217")

    def price(self) -> Price:
        cached = self.prompt_micros if self.cached_prompt_micros is None else self.cached_prompt_micros
        return Price(self.prompt_micros, cached, self.completion_micros, self.currency)


class ExternalTable(Table):
    """What providers and routers have in common."""

    name: Name
    region: str = Field(default="", max_length=64)
    price: PriceTable | None = None
    weight: float = Field(default=1.0, gt=0.0, le=1000.0, description="its share in the policies that weigh")
    use: Literal["ranked", "overflow"] = Field(default="ranked", description="with the executors, or after them")
    overflow_above_tokens: int = Field(
        default=32_768, ge=0, description="with use = overflow: asked too while every executor owes so many tokens"
    )
    max_running: int = Field(default=64, ge=1, le=100_000, description="requests at once")
    connect_seconds: Seconds = 5.0
    first_answer_seconds: Seconds = Field(default=60.0, description="until it begins to answer; then another is asked")
    silence_seconds: Seconds = Field(default=60.0, description="between two parts of an answer; then it is lost")
    probe_seconds: Seconds = Field(default=10.0, description="between two looks at whether it is there")

    @property
    def overflow(self) -> int | None:
        return self.overflow_above_tokens if self.use == "overflow" else None


class ProviderTable(ExternalTable):
    base_url: Annotated[str, AfterValidator(_plain_url)]
    api_key_file: Path | None = None
    models: Mapping[ModelName, ModelName] = Field(min_length=1, max_length=_MAX_MODELS)
    capabilities: frozenset[Capability] = Field(min_length=1)
    # Prompt and answer together. What does not fit is not sent there.
    max_model_len: int = Field(default=131_072, ge=1)
    headers: Mapping[str, str] = Field(default_factory=dict, max_length=_MAX_HEADERS)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    ca_file: Path | None = Field(default=None, description="of who signed its certificate, if not a public authority")

    @model_validator(mode="after")
    def _check_doors(self) -> Self:
        if not self.capabilities & {"chat", "completions"}:
            raise ValueError("capabilities name neither chat nor completions")
        if any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("headers: a key goes into api_key_file, not into Authorization")
        return self


class RouterTable(ExternalTable):
    address: str = Field(min_length=1, max_length=256)
    # Empty: all that its own executors and providers serve, by the same names.
    models: Mapping[ModelName, ModelName] = Field(default_factory=dict, max_length=_MAX_MODELS)


class ExternalTables(Table):
    """Both lists, as the routing file has them."""

    providers: Sequence[ProviderTable] = Field(default=(), max_length=_MAX_EXTERNALS)
    routers: Sequence[RouterTable] = Field(default=(), max_length=_MAX_EXTERNALS)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for tables in (self.providers, self.routers):
            names = [table.name for table in tables]
            if len(set(names)) < len(names):
                raise ValueError(f"a name is given twice: {', '.join(names)}")
        return self
