"""AdamW over a trial's trainable parameters, with moments that can be taken out and put back by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from automl.errors import CheckpointError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.training.schedule import lr_multiplier

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter, under torch's names."""

Parameters = Mapping[str, nn.Parameter]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by name, in the order of the modules."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adamw(parameters: Parameters, hyper: Hyperparameters) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on every trainable parameter; moments are allocated at once, as zeros.

    Allocating early means that a trial too large for its device fails before its first step and not inside it.
    """
    optimizer = torch.optim.AdamW(
        _groups(parameters, hyper),
        lr=hyper.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=hyper.weight_decay,
    )
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _groups(parameters: Parameters, hyper: Hyperparameters) -> list[dict[str, Any]]:
    """One group for each factor of the learning rate that the method gives to its parameters."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(METHODS[hyper.method].rate(name, hyper), []).append(parameter)
    return [{"params": own, "rate": rate} for rate, own in groups.items()]


def take_step(
    optimizer: torch.optim.AdamW, parameters: Parameters, hyper: Hyperparameters, *, step: int, steps: int
) -> None:
    """Clip the gradients that are there and step at the learning rate of step `step` (from 0) of `steps`."""
    if hyper.clip > 0:
        nn.utils.clip_grad_norm_(parameters.values(), hyper.clip)
    for group in optimizer.param_groups:
        multiplier = lr_multiplier(step, steps=steps, warmup=hyper.warmup, schedule=hyper.schedule)
        group["lr"] = hyper.learning_rate * multiplier * group["rate"]
    optimizer.step()


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def moments(
    optimizer: torch.optim.AdamW, parameters: Parameters, copy: Callable[[Tensor], Tensor] = copied
) -> dict[str, Tensor]:
    """Copies of all moments on the CPU, keyed `exp_avg/<parameter name>` and so on. copy: makes them."""
    return {
        f"{key}/{name}": copy(optimizer.state[parameter][key])
        for name, parameter in parameters.items()
        for key in MOMENTS
    }


def load_moments(optimizer: torch.optim.AdamW, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `moments` took out; raises CheckpointError unless names and shapes are exactly the same."""
    wanted = {f"{key}/{name}" for name in parameters for key in MOMENTS}
    if wanted != set(tensors):
        odd = sorted(wanted.symmetric_difference(tensors))[0]
        raise CheckpointError(f"optimizer state: {odd} is missing or unknown; the slot file is of another trial")
    for name, parameter in parameters.items():
        for key in MOMENTS:
            target, source = optimizer.state[parameter][key], tensors[f"{key}/{name}"]
            if target.shape != source.shape:
                raise CheckpointError(
                    f"optimizer state: {key}/{name} has shape {tuple(source.shape)}, not {tuple(target.shape)}"
                )
            target.copy_(source)
