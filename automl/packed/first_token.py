"""The last layer of an encoder for the first token of every row alone, where nothing else is read.

A classifier on top of BERT reads the first token of the last layer. Attention mixes tokens; what follows it in a layer
does not, so behind the last attention all other tokens are computed for nobody: three quarters of that layer's weights.
Leaving them out changes no number that is used, forward or backward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

FIRST_TOKEN_READERS = frozenset(
    {
        "BertForSequenceClassification",
        "ElectraForSequenceClassification",
        "RobertaForSequenceClassification",
        "XLMRobertaForSequenceClassification",
        "CamembertForSequenceClassification",
    }
)
"""Models of transformers, all laid out like BERT, whose head reads the first token only."""


def narrow_module(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Path and module behind the last attention, None if this model reads more than the first token.

    The module is called with the attention's result and the layer's input, both (rows, tokens, features).
    """
    if type(model).__name__ not in FIRST_TOKEN_READERS:
        return None
    prefix = f"{model.base_model_prefix}.encoder.layer"
    path = f"{prefix}.{len(model.get_submodule(prefix)) - 1}.attention.output"  # type: ignore[arg-type]
    return path, model.get_submodule(path)


def narrowed_layers(path: str) -> tuple[str, ...]:
    """Prefixes of the linear layers that see the first token only, for the path of `narrow_module`."""
    layer = path.removesuffix(".attention.output")
    return f"{path}.", f"{layer}.intermediate.", f"{layer}.output."


def narrow(module: nn.Module) -> None:
    """Make the module work on the first token; `del module.forward` undoes it."""
    whole = module.forward

    def first_token(hidden_states: Tensor, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        return whole(hidden_states[:, :1], input_tensor[:, :1], *args, **kwargs)

    module.forward = first_token
