"""Linear layers that bitsandbytes holds in 8 or 4 bits: loading a model with them, and their weights as numbers.

They are told by the class of their weight, so that bitsandbytes is imported only where a model has such layers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.lora import LinearShape
from automl.models.inventory import kept_modules
from automl.models.quantisation import loading_arguments
from automl.space.spec import Quantization

_FOUR_BITS, _EIGHT_BITS = "Params4bit", "Int8Params"

# It looks for a kernel in a package that is no part of ours, and warns of what it does not need.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def loading_options(quantization: Quantization, bones: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments for `from_pretrained` that quantise the linear layers while they are read, one after the other.

    bones: the model without weights. Its head, lm_head and pooler stay as they are, as embeddings and norms do.
    """
    from transformers import BitsAndBytesConfig

    arguments = loading_arguments(quantization, kept_modules(bones), str(dtype).removeprefix("torch."))
    return {"quantization_config": BitsAndBytesConfig(**arguments), "device_map": {"": "cpu"}}


def compute_as_in_training(model: nn.Module, dtype: torch.dtype) -> None:
    """Let quantised layers compute in evaluations what they compute in training, with products of this type.

    In eval mode bitsandbytes rounds inputs too on CPUs: to bfloat16, for which it repacks 4-bit weights for good, after
    which they give no gradient; or to 8 bits (0.50, nn/modules.py). A trial would then be judged by another model than
    the one it is trained on.
    """
    layers: list[Any] = [module for module in model.modules() if is_quantised(module)]
    for layer in layers:
        layer.compute_dtype, layer.compute_type_is_set = dtype, True  # of 4 bits; a checkpoint may name another
        layer.register_forward_pre_hook(_as_in_training)
        if type(layer.weight).__name__ == _EIGHT_BITS:
            layer.register_forward_pre_hook(_with_its_scales)


def is_quantised(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is held in 8 or 4 bits."""
    return type(getattr(module, "weight", None)).__name__ in (_FOUR_BITS, _EIGHT_BITS)


def is_in_four_bits(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is held in 4 bits."""
    return type(getattr(module, "weight", None)).__name__ == _FOUR_BITS


def dense_weight(module: nn.Module, dtype: torch.dtype = torch.float32, *, scales: Tensor | None = None) -> Tensor:
    """The weight as it enters products of this type, newly made if it is quantised: (out, in) for an nn.Linear.

    scales: the layer's `dense_scales`, where they are kept.
    """
    weight: Any = module.weight
    if type(weight).__name__ == _FOUR_BITS:
        return _from_four_bits(weight, dtype, dense_scales(module) if scales is None else scales)
    if type(weight).__name__ == _EIGHT_BITS:
        return _from_eight_bits(module, dtype)
    return weight.detach().to(dtype)  # type: ignore[no-any-return]


def give_weights(held: nn.Module, whole: nn.Module) -> None:
    """Put the weights that the quantised layers of `held` compute with into the same layers of an unquantised model."""
    for path, module in held.named_modules():
        if is_quantised(module):
            layer: Any = whole.get_submodule(path)
            weight = dense_weight(module)
            layer.weight.copy_(weight.t() if isinstance(layer, Conv1D) else weight)


def weight_norms(model: nn.Module, layers: Sequence[LinearShape]) -> list[float]:
    """Frobenius norms of the layers' weights. model: without adapters."""
    return [float(torch.linalg.vector_norm(dense_weight(model.get_submodule(layer.path)))) for layer in layers]


def _as_in_training(module: nn.Module, inputs: object) -> None:
    module.training = True


def _with_its_scales(module: Any, inputs: object) -> None:
    """Keep the state's scales where the weight came to lose its own, from which the state would be made anew.

    peft 0.21 (utils/integrations.py, dequantize_module_weight), for DoRA, puts a copy in the place of a weight in use,
    and bitsandbytes 0.50 (nn/modules.py, Int8Params.to) makes one without scales.
    """
    if module.weight.SCB is None and module.state.SCB is not None:
        module.weight.CB = None


def dense_scales(module: nn.Module) -> Tensor | None:
    """Scales of a weight in 4 bits as float32, newly made if they are quantised themselves; None for other layers."""
    weight: Any = module.weight
    if type(weight).__name__ != _FOUR_BITS:
        return None
    state = weight.quant_state
    scales: Tensor = state.absmax
    if not state.nested:
        return scales
    outer = state.state2
    inner = torch.ops.bitsandbytes.dequantize_blockwise(
        scales, outer.absmax, outer.code, outer.blocksize, torch.float32
    )
    found: Tensor = inner + state.offset
    return found


def _from_four_bits(weight: Any, dtype: torch.dtype, scales: Tensor | None) -> Tensor:
    """The dense weight that bitsandbytes' MatMul4Bit multiplies with (0.50, backends/default/ops.py)."""
    state = weight.quant_state
    found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        weight.data, scales, state.blocksize, state.quant_type, state.shape, dtype
    )
    return found


def _from_eight_bits(module: Any, dtype: torch.dtype) -> Tensor:
    """The dense weight of bitsandbytes' MatMul8bitFp (0.50, autograd/_functions.py).

    The scales are the weight's until the layer is used for the first time, and its state's from then on.
    """
    weight, state = module.weight, module.state
    scales = weight.SCB if state.SCB is None else state.SCB
    found: Tensor = weight.data.to(dtype).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))
    return found
