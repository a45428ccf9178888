"""The Llama family's forward pass with what stands between its matrix products fused.

    add + norm ─ qkv ─ (q/k norm) + rotate + write KV ─ attention ─ output ─ add + norm ─ gate, up ─ silu · mul ─ down

Seven launches of ours and four products per layer, where the plain model makes about twenty-five launches.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from weir_executor.paged.cuda.attention import TritonAttention
from weir_executor.paged.cuda.layers import HeadNorms, add_rms_norm, rotate_and_write, silu_mul
from weir_executor.paged.model.decoder_model import Attend, DecoderModel
from weir_executor.paged.model.layers import Mlp, RmsNorm
from weir_executor.paged.model.llama import Layer, LlamaModel


def fused(model: DecoderModel, attention: TritonAttention) -> DecoderModel:
    """The same model by fused kernels, if it is built of what they compute; else as it is."""
    if isinstance(model, LlamaModel) and model.config.rope.dim == model.config.head_dim and _is_all_rms(model):
        return FusedLlama(model, attention)
    return model


def _is_all_rms(model: LlamaModel) -> bool:
    return all(isinstance(norm, RmsNorm) for layer in model.layers for norm in (layer.attention_norm, layer.mlp_norm))


class FusedLlama(DecoderModel):
    """`model` over the cache of `attention`, whose tables say where a step's keys and values go."""

    def __init__(self, model: LlamaModel, attention: TritonAttention) -> None:
        self.config, self.embedding, self.norm, self.lm_head = model.config, model.embedding, model.norm, model.lm_head
        self._model, self._attention = model, attention
        self._head_norms = [_head_norms(layer) for layer in model.layers]

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._model.embed(token_ids, positions)

    def run_layers(self, hidden: torch.Tensor, positions: torch.Tensor, _: Attend) -> torch.Tensor:
        delta: torch.Tensor | None = None
        for index, layer in enumerate(self._model.layers):
            hidden, normed = _add_norm(layer.attention_norm, hidden, delta)
            qkv = layer.qkv(normed).view(hidden.shape[0], -1, self.config.head_dim)
            queries = rotate_and_write(
                qkv,
                positions,
                self._attention.slots,
                rope=self._model.rope,
                cache=self._attention.cache,
                layer=index,
                norms=self._head_norms[index],
            )
            delta = layer.output(self._attention.attend_written(index, queries).flatten(1))
            hidden, normed = _add_norm(layer.mlp_norm, hidden, delta)
            delta = _mlp(layer, normed)
        return hidden if delta is None else hidden + delta


def _add_norm(norm: object, hidden: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(norm, RmsNorm)
    return add_rms_norm(hidden, delta, norm.weight, norm.eps)


def _mlp(layer: Layer, normed: torch.Tensor) -> torch.Tensor:
    mlp = layer.mlp
    if isinstance(mlp, Mlp) and mlp.activation is functional.silu:
        return mlp.down(silu_mul(mlp.gate_up(normed)))
    return mlp(normed)


def _head_norms(layer: Layer) -> HeadNorms | None:
    if layer.query_norm is None or layer.key_norm is None:
        return None
    assert isinstance(layer.query_norm, RmsNorm)
    assert isinstance(layer.key_norm, RmsNorm)
    return HeadNorms(layer.query_norm.weight, layer.key_norm.weight, layer.query_norm.eps)
