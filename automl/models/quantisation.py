"""Quantisation of a frozen backbone in numbers and words: what bitsandbytes is told, and what a weight takes then.

Neither torch nor bitsandbytes is imported here; what quantised layers hold in memory is in `automl.models.quantised`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from automl.errors import MissingExtraError
from automl.space.spec import Quantization

BLOCK = 64
"""Weights that share a scale in 4 bits: bitsandbytes' and transformers' default."""

_NESTED_BLOCK = 256  # scales that share a scale, with double quantisation


def check_installed(what: str) -> None:
    """Raise MissingExtraError, naming what is to be held in few bits, if bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{what}: needs the package bitsandbytes; pip install 'automl-lora[quant]'")


def bytes_per_weight(quantization: Quantization) -> float:
    """Bytes that a weight of a linear layer takes, its share of the scales included; rows of 8 bits have one scale."""
    if quantization.kind == "int8":
        return 1.0
    scale = 1 + 4 / _NESTED_BLOCK if quantization.double else 4
    return 0.5 + scale / BLOCK


def loading_arguments(quantization: Quantization, kept: Sequence[str], dtype: str) -> dict[str, Any]:
    """Arguments of transformers' BitsAndBytesConfig, as JSON.

    kept: names of modules that are not quantised. dtype: of the products, "float32" or "bfloat16". The threshold of
    LLM.int8() is 0: with one, a row's result depends on the rows beside it.
    """
    if quantization.kind == "int8":
        return {"load_in_8bit": True, "llm_int8_threshold": 0.0, "llm_int8_skip_modules": list(kept)}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quantization.kind,
        "bnb_4bit_use_double_quant": quantization.double,
        "bnb_4bit_compute_dtype": dtype,
        "llm_int8_skip_modules": list(kept),
    }
