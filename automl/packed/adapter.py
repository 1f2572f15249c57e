"""One adapter in training: its flat vectors, its generator, its optimizer. It knows nothing of other adapters.

Parameters, gradients and both moments are one float32 vector each, so that clipping, the optimizer step and a
checkpoint are a handful of operations whatever the number of layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from automl.errors import CheckpointError
from automl.lora import Hyperparameters, LinearShape, lora_parameters
from automl.methods.lora import FREEZE, INIT, PARTS
from automl.methods.principal import Part, kept_names, memory_of, put_back
from automl.methods.registry import METHODS
from automl.methods.seeding import initialise_adapter, initialise_head, stream
from automl.packed.bank import BETAS, EPSILON, Storage, own_storage
from automl.packed.layout import VectorLayout, a_name, adapter_layout, b_name, head_name
from automl.packed.masks import mask_seed

NO_PARTS: Mapping[str, Part] = MappingProxyType({})
NO_STARTS: Mapping[str, Tensor] = MappingProxyType({})

COUNTED_STATE = torch.Size([8])
"""Shape of the state of counted dropout masks; a generator's is larger."""


class LowRank(NamedTuple):
    """The update of one linear layer and where its gradient goes. a: (rank, in), b: (out, rank).

    a_grad: None if A is not trained. part: what is taken away from the layer's output, if anything.
    """

    a: Tensor
    b: Tensor
    a_grad: Tensor | None
    b_grad: Tensor
    part: Part | None


class Adapter:
    """LoRA matrices and heads of one trial, as they were initialised from its seed, with AdamW around them.

    layers: the linear layers it adapts. heads: modules trained in full, by path; they are copied, not touched.
    initializer_range: standard deviation of a new head's weights. storage: zeros to live in; None = vectors of its own.
    is_counted: dropout masks are those of `automl.packed.masks` and not drawn from a generator; without effect if there
    is no dropout. parts: of the weights, by path, that it begins as; constant, and its own from now on. starts: where A
    begins, by path, if that does not follow from the seed; they are copied.
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
        is_counted: bool = False,
        parts: Mapping[str, Part] = NO_PARTS,
        starts: Mapping[str, Tensor] = NO_STARTS,
    ) -> None:
        self.hyper = hyper
        self.step = 0
        self.parts = parts
        self.mask_seed = mask_seed(seed) if hyper.dropout > 0.0 and is_counted else None
        self.generator = stream(seed, "dropout", device) if hyper.dropout > 0.0 and not is_counted else None
        own = layout_of(hyper, layers, heads)
        self.storage = storage or own_storage(own, device)
        self._shapes = {name: place.shape for name, place in own.places.items()}
        self._optimizer = self._adamw()
        self._params = self._views(self.storage.params)
        self._grads = self._views(self.storage.gradient)
        self._frozen = {
            a_name(layer.path): torch.zeros(hyper.rank_of(layer.path), layer.in_features, device=device)
            for layer in layers
            if a_name(layer.path) not in self._shapes
        }
        self._start(layers, starts, seed=seed)
        frozen = {path: self._a(path) for path in starts if a_name(path) in self._frozen}
        self._remembered = kept_names(parts, frozen)
        _start_heads(self._params, heads, seed=seed, std=initializer_range)
        self.low_rank = {layer.path: self._low_rank(layer.path) for layer in layers}
        self.head = self._head_leaves(heads)

    @property
    def gradient(self) -> Tensor:
        """The flat gradient: a sum over terms until `finish_step` divides it."""
        self.settle()
        return self.storage.gradient

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.storage.params.device

    def finish_step(self, count: int, learning_rate: float) -> None:
        """One AdamW step on the mean gradient over `count` terms, clipped to `hyper.clip`; then the gradient is zero.

        Clipping as `torch.nn.utils.clip_grad_norm_` does it: factor min(1, clip / (norm + 1e-6)). In a bank the step is
        noted, and made together with those of others before anything reads the tensors.
        """
        self.step += 1
        if bank := self.storage.bank:
            bank.finish_step(self.storage.row, self.hyper, count=count, learning_rate=learning_rate, number=self.step)
            return
        gradient = self.storage.gradient
        gradient.div_(count)
        if self.hyper.clip > 0:
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_((self.hyper.clip / (norm + 1e-6)).clamp_(max=1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate
        self._optimizer.step()
        gradient.zero_()

    def settle(self) -> None:
        """Make a step that was noted, so that the tensors may be read."""
        if self.storage.bank is not None:
            self.storage.bank.update()

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the trainable tensors on the CPU, by PEFT's names."""
        self.settle()
        return {name: _copy(view) for name, view in self._params.items()}

    def frozen(self) -> dict[str, Tensor]:
        """Copies of what belongs to the adapter and is not trained, on the CPU, by PEFT's names."""
        return {name: _copy(tensor) for name, tensor in self._frozen.items()}

    def moments(self) -> dict[str, Tensor]:
        """Copies of AdamW's state on the CPU, keyed `exp_avg/<parameter name>` and so on, as for separate tensors."""
        self.settle()
        copies = {f"step/{name}": torch.tensor(float(self.step)) for name in self._params}
        for key, flat in self._moments().items():
            copies |= {f"{key}/{name}": _copy(view) for name, view in self._views(flat).items()}
        return copies

    def generator_state(self) -> Tensor | None:
        """State of the dropout masks, (bytes,) uint8: of the generator, or the number that names counted masks.

        None without dropout.
        """
        if self.mask_seed is not None:
            return torch.tensor([self.mask_seed]).view(torch.uint8)
        return None if self.generator is None else self.generator.get_state()

    def set_generator_state(self, state: Tensor | None) -> None:
        """Continue the masks from there; raises CheckpointError if it is the state of another kind of masks."""
        own = self.generator_state()
        if (own is None) != (state is None):
            raise CheckpointError("the slot file and the trial disagree on whether there is dropout")
        if own is None or state is None:
            return
        if own.shape != state.shape or (self.generator is None and not torch.equal(own, state.cpu())):
            raise CheckpointError(
                "the slot file's dropout masks were made in another way, or on another kind of device"
            )
        if self.generator is not None:
            self.generator.set_state(state.cpu())

    def memory(self) -> dict[str, Tensor]:
        """Copies on the CPU of what follows from the weights or the data and is not trained."""
        return memory_of(self._remembered)

    def restore(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        dropout: Tensor | None,
        memory: Mapping[str, Tensor],
    ) -> None:
        """Put back what the methods above took out; raises CheckpointError if names or shapes are not the same."""
        _copy_all(self._params, parameters)
        put_back(self._remembered, memory)
        for path, part in self.parts.items():
            if (a := a_name(path)) in self._frozen:
                self._frozen[a].copy_(part.a)
        for key, flat in self._moments().items():
            prefix = f"{key}/"
            saved = {name.removeprefix(prefix): tensor for name, tensor in moments.items() if name.startswith(prefix)}
            _copy_all(self._views(flat), saved)
        for state in self._optimizer.state.values():
            state["step"].fill_(float(step))
        self.set_generator_state(dropout)
        self.gradient.zero_()
        self.step = step

    def _moments(self) -> dict[str, Tensor]:
        return {"exp_avg": self.storage.exp_avg, "exp_avg_sq": self.storage.exp_avg_sq}

    def _adamw(self) -> torch.optim.AdamW:
        """One fused call over the whole vector, or over its parts if they have rates of their own.

        Moments are allocated at once: too large a trial fails right here.
        """
        rates = {name: METHODS[self.hyper.method].rate(name, self.hyper) for name in self._shapes}
        vectors = (self.storage.params, self.storage.gradient, self.storage.exp_avg, self.storage.exp_avg_sq)
        if set(rates.values()) <= {1.0}:
            groups = {1.0: [vectors]}
        else:
            views = [self._views(vector) for vector in vectors]
            groups = {rate: [] for rate in rates.values()}
            for name, rate in rates.items():
                groups[rate].append(tuple(each[name] for each in views))  # type: ignore[arg-type]
        return _fused_adamw(groups, self.hyper.weight_decay)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """This adapter's own tensors in a vector of its storage: no padding, no layers that it leaves alone."""
        padded = self.storage.layout.views(flat)
        return {name: padded[name][tuple(slice(size) for size in shape)] for name, shape in self._shapes.items()}

    def _low_rank(self, path: str) -> LowRank:
        a, b = a_name(path), b_name(path)
        return LowRank(self._a(path), self._params[b], self._grads.get(a), self._grads[b], self.parts.get(path))

    def _a(self, path: str) -> Tensor:
        """A of the layer at this path, trained or not."""
        name = a_name(path)
        return self._frozen[name] if name in self._frozen else self._params[name]

    def _start(self, layers: Sequence[LinearShape], starts: Mapping[str, Tensor], *, seed: int) -> None:
        for layer in layers:
            a, b = self._a(layer.path), self._params[b_name(layer.path)]
            if (part := self.parts.get(layer.path)) is not None:
                a.copy_(part.a)
                b.copy_(part.b)
            elif (start := starts.get(layer.path)) is not None:
                a.copy_(start)
                b.zero_()
            else:
                initialise_adapter(a, b, seed=seed, path=layer.path, how=str(INIT.of(self.hyper)))

    def _head_leaves(self, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Parameters of the heads by their path in the model, as leaves whose gradient is added to the flat one."""
        leaves = {}
        for head, module in heads.items():
            for name, _ in module.named_parameters():
                key = head_name(head, name)
                leaves[f"{head}.{name}"] = leaf = self._params[key].detach().requires_grad_()
                leaf.grad = self._grads[key]
        return leaves


def _fused_adamw(groups: Mapping[float, Sequence[Sequence[Tensor]]], weight_decay: float) -> torch.optim.AdamW:
    """groups: factor of the learning rate -> parameters, gradient and both moments of each part."""
    leaves = {rate: [nn.Parameter(part[0]) for part in parts] for rate, parts in groups.items()}
    optimizer = torch.optim.AdamW(
        [{"params": own, "rate": rate} for rate, own in leaves.items()],
        betas=BETAS,
        eps=EPSILON,
        weight_decay=weight_decay,
        fused=True,
    )
    for rate, parts in groups.items():
        for leaf, (_, gradient, exp_avg, exp_avg_sq) in zip(leaves[rate], parts, strict=True):
            leaf.grad = gradient
            step = torch.zeros((), dtype=torch.float32, device=leaf.device)
            optimizer.state[leaf] = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return optimizer


def layout_of(hyper: Hyperparameters, layers: Sequence[LinearShape], heads: Mapping[str, nn.Module]) -> VectorLayout:
    """Where what such a trial trains would lie in vectors of its own."""
    return adapter_layout(layers, hyper.rank_of, heads, is_a_trained=not FREEZE.of(hyper))


def constant_bytes(hyper: Hyperparameters, layers: Sequence[LinearShape]) -> int:
    """Memory of what such an adapter holds and does not train: a frozen A, and its parts of the weights."""
    a = sum(hyper.rank_of(layer.path) * layer.in_features for layer in layers) if FREEZE.of(hyper) else 0
    return 4 * (a + (lora_parameters(layers, hyper.rank_of) if INIT.of(hyper) in PARTS else 0))


def _start_heads(params: Mapping[str, Tensor], heads: Mapping[str, nn.Module], *, seed: int, std: float) -> None:
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
