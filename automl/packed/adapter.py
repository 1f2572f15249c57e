"""One adapter in training: its flat vectors, its generator, its optimizer. It knows nothing of other adapters.

Parameters, gradients and both moments are one float32 vector each, so that clipping, the optimizer step and a
checkpoint are a handful of operations whatever the number of layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from automl.errors import CheckpointError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.seeding import initialise_adapter, initialise_head, stream
from automl.packed.bank import Storage, own_storage
from automl.packed.layout import a_name, adapter_layout, b_name, head_name

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter, under torch's names."""


class LowRank(NamedTuple):
    """The trainable part of one linear layer and where its gradient goes. a: (rank, in), b: (out, rank)."""

    a: Tensor
    b: Tensor
    a_grad: Tensor
    b_grad: Tensor


class Adapter:
    """LoRA matrices and heads of one trial, as they were initialised from its seed, with AdamW around them.

    layers: the linear layers it adapts. heads: modules trained in full, by path; they are copied, not touched.
    initializer_range: standard deviation of a new head's weights. storage: zeros to live in; None = vectors of its own.
    """

    def __init__(
        self,
        hyper: Hyperparameters,
        layers: Sequence[LinearShape],
        heads: Mapping[str, nn.Module],
        *,
        seed: int,
        device: torch.device,
        initializer_range: float = 0.02,
        storage: Storage | None = None,
    ) -> None:
        self.hyper = hyper
        self.step = 0
        self.generator = stream(seed, "dropout", device) if hyper.dropout > 0.0 else None
        own = adapter_layout(layers, hyper.rank_of, heads)
        self.storage = storage or own_storage(own, device)
        self._shapes = {name: place.shape for name, place in own.places.items()}
        self._flat = nn.Parameter(self.storage.params)
        self._flat.grad = self.storage.gradient
        self._optimizer = self._adamw()
        self._params = self._views(self.storage.params)
        self._grads = self._views(self.storage.gradient)
        _initialise(self._params, layers, heads, seed=seed, std=initializer_range)
        self.low_rank = {layer.path: self._low_rank(layer.path) for layer in layers}
        self.head = self._head_leaves(heads)

    @property
    def gradient(self) -> Tensor:
        """The flat gradient: a sum over terms until `finish_step` divides it."""
        return self.storage.gradient

    @property
    def bytes(self) -> int:
        """Memory of parameters, gradient and moments."""
        return 16 * self.storage.layout.size

    def finish_step(self, count: int, learning_rate: float) -> None:
        """One AdamW step on the mean gradient over `count` terms, clipped to `hyper.clip`; then the gradient is zero.

        Clipping as `torch.nn.utils.clip_grad_norm_` does it: factor min(1, clip / (norm + 1e-6)).
        """
        gradient = self.gradient
        gradient.div_(count)
        if self.hyper.clip > 0:
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_((self.hyper.clip / (norm + 1e-6)).clamp_(max=1.0))
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        gradient.zero_()
        self.step += 1

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the trainable tensors on the CPU, by PEFT's names."""
        return {name: _copy(view) for name, view in self._params.items()}

    def moments(self) -> dict[str, Tensor]:
        """Copies of AdamW's state on the CPU, keyed `exp_avg/<parameter name>` and so on, as for separate tensors."""
        state = self._optimizer.state[self._flat]
        copies = {f"step/{name}": state["step"].to("cpu", copy=True) for name in self._params}
        for key in ("exp_avg", "exp_avg_sq"):
            copies |= {f"{key}/{name}": _copy(view) for name, view in self._views(state[key]).items()}
        return copies

    def generator_state(self) -> Tensor | None:
        """State of the dropout generator, (bytes,) uint8; None without dropout."""
        return None if self.generator is None else self.generator.get_state()

    def set_generator_state(self, state: Tensor | None) -> None:
        """Continue the masks from there; raises CheckpointError if one side has no dropout."""
        if (self.generator is None) != (state is None):
            raise CheckpointError("the slot file and the trial disagree on whether there is dropout")
        if self.generator is not None and state is not None:
            self.generator.set_state(state.cpu())

    def restore(
        self, step: int, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], dropout: Tensor | None
    ) -> None:
        """Put back what the methods above took out; raises CheckpointError if names or shapes are not the same."""
        state = self._optimizer.state[self._flat]
        _copy_all(self._params, parameters)
        for key in ("exp_avg", "exp_avg_sq"):
            prefix = f"{key}/"
            saved = {name.removeprefix(prefix): tensor for name, tensor in moments.items() if name.startswith(prefix)}
            _copy_all(self._views(state[key]), saved)
        state["step"].fill_(float(step))
        self.set_generator_state(dropout)
        self.gradient.zero_()
        self.step = step

    def _adamw(self) -> torch.optim.AdamW:
        """One fused call over the whole vector. Moments are allocated at once: too large a trial fails right here."""
        optimizer = torch.optim.AdamW(
            [self._flat], betas=(0.9, 0.999), eps=1e-8, weight_decay=self.hyper.weight_decay, fused=True
        )
        optimizer.state[self._flat] = {
            "step": torch.zeros((), dtype=torch.float32, device=self._flat.device),
            "exp_avg": self.storage.exp_avg,
            "exp_avg_sq": self.storage.exp_avg_sq,
        }
        return optimizer

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """This adapter's own tensors in a vector of its storage: no padding, no layers that it leaves alone."""
        padded = self.storage.layout.views(flat)
        return {name: padded[name][tuple(slice(size) for size in shape)] for name, shape in self._shapes.items()}

    def _low_rank(self, path: str) -> LowRank:
        a, b = a_name(path), b_name(path)
        return LowRank(self._params[a], self._params[b], self._grads[a], self._grads[b])

    def _head_leaves(self, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Parameters of the heads by their path in the model, as leaves whose gradient is added to the flat one."""
        leaves = {}
        for head, module in heads.items():
            for name, _ in module.named_parameters():
                key = head_name(head, name)
                leaves[f"{head}.{name}"] = leaf = self._params[key].detach().requires_grad_()
                leaf.grad = self._grads[key]
        return leaves


def _initialise(
    params: Mapping[str, Tensor],
    layers: Sequence[LinearShape],
    heads: Mapping[str, nn.Module],
    *,
    seed: int,
    std: float,
) -> None:
    for layer in layers:
        initialise_adapter(params[a_name(layer.path)], params[b_name(layer.path)], seed=seed, path=layer.path)
    for path, module in heads.items():
        fresh = copy.deepcopy(module).float()
        initialise_head(fresh, seed=seed, path=path, std=std)
        for name, tensor in fresh.named_parameters():
            params[head_name(path, name)].copy_(tensor.detach())


def _copy(view: Tensor) -> Tensor:
    return view.detach().clone(memory_format=torch.contiguous_format).cpu()


def _copy_all(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    odd = sorted(targets.keys() ^ sources.keys()) or sorted(
        name for name, tensor in targets.items() if tensor.shape != sources[name].shape
    )
    if odd:
        raise CheckpointError(f"{len(odd)} tensors do not fit the adapter, {odd[0]} among them")
    for name, tensor in targets.items():
        tensor.copy_(sources[name])
