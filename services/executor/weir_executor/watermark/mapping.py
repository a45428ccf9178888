"""`weir.inference.v1.Watermark` and whose it is → `Watermark`, nothing else. Pure."""

from __future__ import annotations

from dataclasses import replace

from weir.inference.v1 import watermark_pb2 as pb
from weir_chassis.errors import Unsupported
from weir_executor.ranges import Range
from weir_executor.request import Watermark
from weir_executor.watermark.keys import WatermarkKeys

_GREEN_FRACTION, _BIAS = Range(0.05, 0.95), Range(0, 20, low_is_open=True)


def to_watermark(field: str, asked: pb.Watermark, tenant: str, keys: WatermarkKeys | None) -> Watermark:
    """The tenant's own. Raises Unsupported without keys, InvalidArgument."""
    if keys is None:
        raise Unsupported(f"{field}: this executor has no watermark key")
    watermark = Watermark(keys.of(tenant))
    if asked.HasField("green_fraction"):
        _GREEN_FRACTION.check(f"{field}.green_fraction", asked.green_fraction)
        watermark = replace(watermark, green_fraction=asked.green_fraction)
    if asked.HasField("bias"):
        _BIAS.check(f"{field}.bias", asked.bias)
        watermark = replace(watermark, bias=asked.bias)
    return watermark
