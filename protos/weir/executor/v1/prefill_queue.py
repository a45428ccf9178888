"""The names of the queue in which prompts wait for a prefill worker, for all who publish to it or take from it."""

from __future__ import annotations

from hashlib import blake2b

from weir.inference.v1.model_pb2 import ModelVersion

CONSUMER = "prefill"  # one for all workers of a stream: each job goes to one of them


def stream_name(version: ModelVersion) -> str:
    """The JetStream stream of this model version: prompts mean the same only under the same."""
    return f"weir_prefill_{_digest(version)}"


def subject(version: ModelVersion) -> str:
    """The only subject of that stream."""
    return f"weir.prefill.{_digest(version)}"


def _digest(version: ModelVersion) -> str:
    """Names may hold what subjects may not. Each part is framed by its length, so that no two versions read alike."""
    parts = [part.encode() for part in (version.model, version.revision, version.tokenizer_hash)]
    framed = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return blake2b(framed, digest_size=12, person=b"weir.prefill").hexdigest()
