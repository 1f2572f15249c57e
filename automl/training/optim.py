"""AdamW over a trial's trainable parameters, with moments that can be taken out and put back by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from automl.errors import CheckpointError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.whole import EIGHT_BITS, OPTIMIZER, SMALLEST
from automl.training.schedule import lr_multiplier

_TABLES = ("qmap1", "qmap2")  # of bitsandbytes: what its 8 bits mean, the same for all

Parameters = Mapping[str, nn.Parameter]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by name, in the order of the modules."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adamw(parameters: Parameters, hyper: Hyperparameters) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay on every trainable parameter; moments are allocated at once, as zeros.

    Allocating early means that a trial too large for its device fails before its first step and not inside it.
    """
    if OPTIMIZER.of(hyper) == EIGHT_BITS:
        return _adamw_8bit(parameters, hyper)
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


def _adamw_8bit(parameters: Parameters, hyper: Hyperparameters) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW: moments of large tensors in 8 bits (Dettmers et al. 2022), on CPUs and GPUs."""
    optimizer: Any = import_module("bitsandbytes.optim").AdamW8bit(
        _groups(parameters, hyper),
        lr=hyper.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=hyper.weight_decay,
        min_8bit_size=SMALLEST,
    )
    for index, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, index, place)
    return optimizer  # type: ignore[no-any-return]  # bitsandbytes is untyped


def _groups(parameters: Parameters, hyper: Hyperparameters) -> list[dict[str, Any]]:
    """One group for each factor of the learning rate that the method gives to its parameters."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(METHODS[hyper.method].rate(name, hyper), []).append(parameter)
    return [{"params": own, "rate": rate} for rate, own in groups.items()]


def take_step(
    optimizer: torch.optim.Optimizer, parameters: Parameters, hyper: Hyperparameters, *, step: int, steps: int
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
    optimizer: torch.optim.Optimizer, parameters: Parameters, copy: Callable[[Tensor], Tensor] = copied
) -> dict[str, Tensor]:
    """Copies of all moments on the CPU, keyed `exp_avg/<parameter name>` and so on, by the optimizer's own keys.

    copy: makes the copies.
    """
    return {
        key: copy(value) if isinstance(value, Tensor) else torch.tensor(float(value))
        for key, value in _kept(optimizer, parameters).items()
    }


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of its moments."""
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in states if isinstance(value, Tensor))


def load_moments(optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `moments` took out; raises CheckpointError unless names and shapes are exactly the same."""
    own = _kept(optimizer, parameters)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[0]
        raise CheckpointError(f"optimizer state: {odd} is missing or unknown; the slot file is of another trial")
    for name, target in own.items():
        source = tensors[name]
        if not isinstance(target, Tensor):  # bitsandbytes counts steps in a number
            key, _, parameter = name.partition("/")
            optimizer.state[parameters[parameter]][key] = int(source)
        elif target.shape != source.shape:
            raise CheckpointError(f"optimizer state: {name} has shape {tuple(source.shape)}, not {tuple(target.shape)}")
        else:
            target.copy_(source)


def _kept(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor | int]:
    """What belongs to each parameter, by key and name."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if key not in _TABLES
    }
