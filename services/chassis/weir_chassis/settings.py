"""The environment becomes one frozen object, once, loudly.

A bad value and a misspelt variable both stop the process; the message names the variable, the problem and the limit.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

# Enough to recognise a value by; a mistaken paste of a key or a file should not fill the terminal.
_MAX_SHOWN_CHARS = 80
ANY_HOST = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, not listened on
# Of 4 bytes at most, so that a source's name has no more than 255.
MAX_SOURCE_CHARS = 63
# The contract's, of a region.
MAX_NAME_BYTES = 64


def _short(name: str) -> str:
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"longer than {MAX_NAME_BYTES} bytes")
    return name


_Name = Annotated[str, AfterValidator(_short)]


class SettingsError(Exception):
    """The environment is wrong. One problem per line, each naming its variable."""


class ServiceSettings(BaseSettings):
    """What every service is told. A service subclasses this with its own fields and `env_prefix="WEIR_<SERVICE>_"`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="the address to listen on; loopback unless told")
    port: int = Field(
        default=0, ge=0, le=65535, description="0 takes any free port, which the log line `serving` names"
    )
    metrics_port: int = Field(default=0, ge=0, le=65535, description="Prometheus metrics over HTTP; 0 is off")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_seconds: float = Field(default=30.0, ge=0.0, le=3600.0, description="how long running calls may finish in")
    max_concurrent_streams: int = Field(default=1024, ge=1, le=1_000_000, description="per connection")
    default_deadline_seconds: float | None = Field(
        default=None, gt=0.0, le=86_400.0, description="for a call that brings no deadline; unset lets it run"
    )
    exit_with_parent: int = Field(
        default=0, ge=0, description="the id of the process that must outlive this one; 0 is none"
    )
    processors: str = Field(
        default="",
        max_length=256,
        pattern=r"^(\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*)?$",
        description="such as 0 or 0-3,8: on which all of its threads stay; empty: on any. A router is quickest on one",
    )
    region: _Name = Field(default="", description="where it runs, as its operator names it, such as eu-west")
    advertise: str = Field(
        default="",
        max_length=256,
        description="host:port by which others reach it, as a container has to say; empty: host and port",
    )

    announce_lease_seconds: float = Field(
        default=10.0, ge=0.1, le=3600.0, description="on NATS: one that is not heard of for so long may be gone"
    )
    # Without `nats_url` it neither publishes nor follows, and is found by its address alone.
    nats_url: SecretStr | None = Field(
        default=None, min_length=1, description="nats://[user:password@]host:port,…, or tls://…; unset: none"
    )
    nats_source: str = Field(
        default="",
        max_length=MAX_SOURCE_CHARS,
        description="the name it publishes under; empty: as others reach it",
    )
    nats_user: str = Field(default="", description="with nats_password; empty: as the URL says, or none")
    nats_password: SecretStr = SecretStr("")
    nats_token: SecretStr = SecretStr("")
    nats_credentials_file: Path | None = Field(default=None, description="a user's JWT and seed, as `nsc` writes them")
    nats_tls_ca_file: Path | None = Field(default=None, description="unset: the system's authorities")
    nats_tls_cert_file: Path | None = Field(default=None, description="for a server that asks its clients for one")
    nats_tls_key_file: Path | None = None

    def replace(self, **changes: Any) -> Self:
        """A checked copy with other values, for tests and for starting services from a program."""
        return type(self).model_validate({**self.model_dump(), **changes})


S = TypeVar("S", bound=ServiceSettings)


def load_settings(cls: type[S]) -> S:
    """The settings from the environment, or SettingsError."""
    problems = list(_unknown_variables(cls, os.environ))
    try:
        settings = cls()
    except ValidationError as error:
        problems.extend(_describe(cls, error))
    except ValueError as error:  # pydantic-settings raises this for a list or a table that is not JSON
        problems.append(_describe_json(cls, error))
    else:
        if not problems:
            return settings
    raise SettingsError("\n".join(problems))


def variable_names(cls: type[ServiceSettings]) -> Mapping[str, str]:
    """Environment variable → field, for every field."""
    return {_prefix(cls) + name.upper(): name for name in cls.model_fields}


def variable_of(cls: type[ServiceSettings], field: str) -> str:
    return _prefix(cls) + field.upper()


def _prefix(cls: type[ServiceSettings]) -> str:
    prefix = cls.model_config.get("env_prefix", "").upper()
    assert prefix.endswith("_"), f"{cls.__name__} needs an env_prefix such as 'WEIR_ROUTER_'"
    return prefix


def _unknown_variables(cls: type[ServiceSettings], environ: Mapping[str, str]) -> Iterator[str]:
    known = variable_names(cls)
    for variable in sorted(environ):
        if variable.upper().startswith(_prefix(cls)) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1)
            yield f"{variable}: no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _describe(cls: type[ServiceSettings], error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        path = problem["loc"]
        if not path:  # a relation between fields; its message names them
            yield f"{_prefix(cls)}*: {problem['msg']}"
            continue
        inner = "".join(f"[{part}]" for part in path[1:])
        yield f"{_prefix(cls)}{str(path[0]).upper()}{inner}={_shown(cls, path, problem['input'])}: {problem['msg']}"


def _describe_json(cls: type[ServiceSettings], error: ValueError) -> str:
    """pydantic-settings names the field in its words only."""
    named = next((name for name in cls.model_fields if f'"{name}"' in str(error)), "*")
    return f"{_prefix(cls)}{named.upper()}: not JSON: {error.__cause__ or error}"


def _shown(cls: type[ServiceSettings], path: tuple[int | str, ...], value: object) -> str:
    field = cls.model_fields.get(str(path[0]))
    if field is not None and "Secret" in repr(field.annotation):
        return "(secret)"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
