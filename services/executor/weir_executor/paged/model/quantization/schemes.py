"""The schemes that are known: `quantization_config.quant_method` in `config.json` → how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weir_executor.paged.model.config import Fields, ModelConfigError
from weir_executor.paged.model.quantization.awq import parse_awq
from weir_executor.paged.model.quantization.compressed_tensors import parse_compressed_tensors
from weir_executor.paged.model.quantization.fp8 import parse_fp8
from weir_executor.paged.model.quantization.gptq import parse_gptq
from weir_executor.paged.model.quantization.scheme import WeightScheme

SCHEMES: Mapping[str, Callable[[Fields], WeightScheme]] = {
    "awq": parse_awq,
    "compressed-tensors": parse_compressed_tensors,
    "fbgemm_fp8": parse_fp8,
    "fp8": parse_fp8,
    "gptq": parse_gptq,
}


def parse_scheme(fields: Fields) -> WeightScheme:
    """Of a `quantization_config`. Raises `ModelConfigError` naming the scheme and those that are known."""
    method = str(fields.get("quant_method", "(none)"))
    if method not in SCHEMES:
        raise ModelConfigError(f"quantization {method!r} is not known here; known: {', '.join(sorted(SCHEMES))}")
    return SCHEMES[method](fields)
