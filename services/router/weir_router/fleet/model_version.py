"""A model version as a value that can be compared, hashed and kept in a set, which its message cannot."""

from __future__ import annotations

from dataclasses import dataclass

from weir.inference.v1.model_pb2 import ModelVersion


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """What must agree between two services before a request may pass from one to the other."""

    model: str
    revision: str
    tokenizer_hash: str

    @classmethod
    def of(cls, message: ModelVersion) -> Version:
        return cls(message.model, message.revision, message.tokenizer_hash)

    def message(self) -> ModelVersion:
        return ModelVersion(model=self.model, revision=self.revision, tokenizer_hash=self.tokenizer_hash)

    def __str__(self) -> str:
        """For error messages and logs: enough of the tokenizer's hash to tell two apart."""
        return f"{self.revision}/{self.tokenizer_hash[:12]}"
