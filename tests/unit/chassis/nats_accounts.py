"""What `nsc` makes, by hand: an operator, an account and a user, each a key pair and a token that the one above signed.

https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]

_NO_LIMIT = dict.fromkeys(("subs", "data", "payload"), -1)
_ACCOUNT_LIMITS = {**_NO_LIMIT, **dict.fromkeys(("imports", "exports", "conn", "leaf"), -1), "wildcards": True}
_PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}


class Accounts:
    """One operator with one account, and the server's settings that believe them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._operator, self._account = _key("operator"), _key("account")
        system = _key("account")  # the server's own, without which it starts no JetStream
        accounts = {_name(key): self._signed_account(key) for key in (self._account, system)}
        self.config = directory / "accounts.conf"
        self.config.write_text(
            f"operator: {_token(self._operator, self._operator, {'type': 'operator'})}\n"
            f"system_account: {_name(system)}\nresolver: MEMORY\n"
            "resolver_preload: {\n" + "".join(f"  {name}: {token}\n" for name, token in accounts.items()) + "}\n"
        )

    def _signed_account(self, key: nkeys.KeyPair) -> str:
        return _token(key, self._operator, {"type": "account", "limits": _ACCOUNT_LIMITS})

    def credentials(self, name: str, *, publishes: str = ">", expires: int = 0) -> Path:
        """A user's file, as `nsc generate creds` writes it; `expires` in seconds since the epoch, 0: never."""
        user = _key("user")
        rules = {"type": "user", "pub": {"allow": [publishes]}, "sub": {}, **_NO_LIMIT}
        token = _token(user, self._account, rules, **({"exp": expires} if expires else {}))
        path = self._directory / f"{name}.creds"
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return path


def _key(kind: str) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), _PREFIXES[kind])))


def _name(key: nkeys.KeyPair) -> str:
    return str(key.public_key, "ascii")


def _token(subject: nkeys.KeyPair, issuer: nkeys.KeyPair, rules: dict[str, Any], **claims: Any) -> str:
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    body = {"iss": _name(issuer), "sub": _name(subject), "iat": 1, "nats": {"version": 2, **rules}, **claims}
    said = ".".join(_encoded(json.dumps(part).encode()) for part in (header, body))
    return f"{said}.{_encoded(issuer.sign(said.encode()))}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
