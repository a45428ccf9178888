"""The two model shapes, stated once; the trainer and the exporter derive every other number from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Llama decoder's sizes, in units of features, heads, layers or tokens."""

    vocab_size: int
    hidden_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    intermediate_size: int
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        assert self.hidden_size % self.head_count == 0, "heads must divide the hidden size"
        assert self.head_count % self.kv_head_count == 0, "key-value heads must divide the heads"

    @property
    def head_dim(self) -> int:
        """Features per head."""
        return self.hidden_size // self.head_count


VOCAB_SIZE = 4096

SHAPES = {
    "demo": Shape(VOCAB_SIZE, hidden_size=256, layer_count=6, head_count=4, kv_head_count=2, intermediate_size=704),
    "draft": Shape(VOCAB_SIZE, hidden_size=128, layer_count=2, head_count=4, kv_head_count=2, intermediate_size=352),
}
