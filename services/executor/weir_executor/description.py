"""What an executor says of itself in the fleet. Pure."""

from __future__ import annotations

from weir.fleet.v1.instance_pb2 import Instance, Price
from weir_executor.mapping import Served
from weir_executor.settings import ExecutorSettings, PriceSettings


def describe(served: Served, settings: ExecutorSettings) -> Instance:
    return Instance(
        model_versions=[served.version],
        price=_price(settings.price) if settings.price is not None else None,
        weight=settings.weight,
        capabilities=_capabilities(served),
        capacity=settings.max_num_seqs,
    )


def _price(told: PriceSettings) -> Price:
    cached = told.prompt_micros if told.cached_prompt_micros is None else told.cached_prompt_micros
    return Price(
        prompt_micros=told.prompt_micros,
        cached_prompt_micros=cached,
        completion_micros=told.completion_micros,
        currency=told.currency,
    )


def _capabilities(served: Served) -> list[str]:
    info = served.info
    able = {
        "guides": served.takes_guides,
        "embeddings": bool(info.embedding_size),
        "adapters": bool(info.max_adapters),
        "watermarks": served.watermark_keys is not None,
        "speculation": bool(info.speculation_modes),
    }
    return [name for name, is_able in able.items() if is_able]
