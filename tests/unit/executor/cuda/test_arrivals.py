"""What is loaded layer by layer is there before its layer is touched, in whatever way a step touches it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from contract.engine_contract import request
from models_fixture import VOCAB_SIZE, tiny_model
from unit.executor.cuda.doubles import CapturerDouble
from weir_executor.paged.attention import TorchAttention
from weir_executor.paged.batch import BlockLoad, Scheduled
from weir_executor.paged.cuda.arrivals import Arrivals
from weir_executor.paged.cuda.attention import TritonAttention, max_numbers
from weir_executor.paged.cuda.blocks import CudaBlocks
from weir_executor.paged.cuda.decode_step import DecodeRow, DecodeSteps
from weir_executor.paged.cuda.llama import fused
from weir_executor.paged.decoder import Decoder, TorchDecoder
from weir_executor.paged.flat_batch import flatten
from weir_executor.paged.kv_cache import KvCache
from weir_executor.paged.model.registry import load_config, load_model
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.sequence import Sequence as LiveSequence
from weir_executor.request import Sampling

_BLOCK, _NUM_BLOCKS, _LAYERS = 4, 20, 3
_CPU = torch.device("cpu")


class LateArrivals(Arrivals):
    """On the way until the very moment that somebody waits: who forgets to reads what was there before."""

    def __init__(self, cache: KvCache) -> None:
        super().__init__(cache, None)
        self.on_the_way: dict[int, Callable[[], None]] = {}

    def wait(self, layer: int) -> None:
        super().wait(layer)
        if layer in self.on_the_way:
            self.on_the_way.pop(layer)()

    def _send(self, layer: int, copy: Callable[[], None]) -> None:
        self._sent[layer] = None
        self.on_the_way[layer] = copy


class _Loaded:
    """A prompt of three blocks: two were computed elsewhere and are loaded, the third is computed after them."""

    def __init__(self, *, kernels: bool) -> None:
        directory = tiny_model("llama3")
        self.config = load_config(directory)
        self.model = load_model(directory, self.config, 256, torch.float32, _CPU)
        tokens = [random.Random(1).randrange(3, VOCAB_SIZE) for _ in range(11)]
        elsewhere = KvCache(self.config, _NUM_BLOCKS, _BLOCK, torch.float32, _CPU)
        self.sequence = _sequence(tokens, [5, 7, 2])
        step = flatten([Scheduled(self.sequence, 0, len(tokens))])
        logits = TorchDecoder(self.model, TorchAttention(elsewhere, self.config.attention), _CPU).decode(step).logits
        assert logits is not None
        self.expected = logits
        self.loads = [
            BlockLoad(block, payload) for block, payload in zip((5, 7), elsewhere.read_blocks([5, 7]), strict=True)
        ]
        self.cache = KvCache(self.config, _NUM_BLOCKS, _BLOCK, torch.float32, _CPU)
        self.late = LateArrivals(self.cache)
        self.decoder = self._by_kernels() if kernels else self._by_pytorch()

    def logits(self) -> torch.Tensor:
        """Of the prompt's end, after its third block alone was computed."""
        found = self.decoder.decode(flatten([Scheduled(self.sequence, 8, 3)])).logits
        assert found is not None
        return found

    def _by_pytorch(self) -> Decoder:
        return TorchDecoder(self.model, TorchAttention(self.cache, self.config.attention), _CPU)

    def _by_kernels(self) -> Decoder:
        self.attention = self.triton()
        return TorchDecoder(fused(self.model, self.attention), self.attention, _CPU)

    def triton(self) -> TritonAttention:
        numbers = max_numbers(max_tokens=16, max_rows=2, max_blocks=_NUM_BLOCKS)
        return TritonAttention(self.cache, self.config.num_heads, self.config.attention, numbers)


def _sequence(tokens: list[int], blocks: list[int]) -> LiveSequence:
    wanted = request(1, tokens, 1, sampling=Sampling(temperature=0.0))
    live = LiveRequest(wanted, 1, frozenset(), shares_blocks=False, submitted_at=0.0)
    return LiveSequence(live, 0, tokens, [], blocks=blocks)


@pytest.mark.parametrize("kernels", [False, True], ids=["pytorch", "kernels"])
@torch.inference_mode()
def test_a_step_waits_for_each_layer_before_it_touches_it(kernels: bool) -> None:
    loaded = _Loaded(kernels=kernels)
    loaded.late.begin(loaded.loads)
    assert len(loaded.late.on_the_way) == _LAYERS
    torch.testing.assert_close(loaded.logits(), loaded.expected, rtol=1e-4, atol=1e-4)
    assert not loaded.late.on_the_way


@torch.inference_mode()
def test_the_proof_sees_who_does_not_wait() -> None:
    loaded = _Loaded(kernels=False)
    loaded.late.begin(loaded.loads)
    loaded.cache.before_layer = lambda layer: None if layer == 1 else loaded.late.wait(layer)
    assert not torch.allclose(loaded.logits(), loaded.expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_captured_step_waits_for_all_of_it_before_it_is_replayed() -> None:
    loaded = _Loaded(kernels=True)
    waited: list[int] = []

    class Capturer(CapturerDouble):
        def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
            replay, output = super().capture(run)

            def checked() -> None:
                waited.append(len(loaded.late.on_the_way))
                replay()

            return checked, output

    attention = loaded.attention
    steps = DecodeSteps(fused(loaded.model, attention), attention, 2, _NUM_BLOCKS, Capturer())
    steps.warm_up()
    loaded.late.begin(loaded.loads)
    steps.launch([DecodeRow(8, loaded.sequence.blocks, loaded.sequence.token_ids[8])])
    assert waited == [0]


def test_what_nobody_waited_for_is_there_before_anything_else_is_loaded_or_cleared() -> None:
    loaded = _Loaded(kernels=False)
    blocks = CudaBlocks(loaded.cache)
    blocks._arrivals = loaded.late
    loaded.cache.before_layer = loaded.late.wait
    first, second = loaded.loads
    blocks.write_blocks([first])
    blocks.write_blocks([BlockLoad(first.block_id, second.payload)])
    loaded.late.settle()
    assert blocks.read_blocks([first.block_id]) == [second.payload]
    blocks.write_blocks([first])
    blocks.clear_blocks([first.block_id])
    loaded.late.settle()
    assert not any(blocks.read_blocks([first.block_id])[0])


@pytest.mark.cuda
@torch.inference_mode()
def test_on_a_device_the_step_sees_what_it_waited_for(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("for a device")
    config = load_config(tiny_model("llama3"))
    source, cache = (KvCache(config, _NUM_BLOCKS, _BLOCK, torch.float32, device) for _ in range(2))
    for layer in range(_LAYERS):
        for part in source.layer_blocks(layer):
            part.normal_()
    payloads = source.read_blocks(range(_NUM_BLOCKS))
    blocks = CudaBlocks(cache)
    blocks.write_blocks([BlockLoad(number, payload) for number, payload in enumerate(payloads)])
    for layer in range(_LAYERS):
        for found, expected in zip(cache.layer_blocks(layer), source.layer_blocks(layer), strict=True):
            assert torch.equal(found, expected)
