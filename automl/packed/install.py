"""What packed training puts on a frozen model, and takes off again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

from automl.errors import TargetError, is_out_of_memory
from automl.lora import Hyperparameters, LinearShape
from automl.methods.eva import starting_matrices
from automl.methods.lora import EVA, INIT, PARTS
from automl.methods.principal import Directions, Part, check_whole, directions
from automl.models.inventory import head_modules, linear_layers, resolve_targets
from automl.models.quantised import is_quantised, weight_norms
from automl.packed.adapter import Adapter
from automl.packed.bank import Bank, BankSize
from automl.packed.bank_step import BankStep, row_losses
from automl.packed.body import Body, View, has_bare_stacks
from automl.packed.first_token import narrow, narrow_module, narrowed_layers
from automl.packed.heads import PackedHeads, can_batch
from automl.packed.kernels import KERNELS, OUTPUT_KERNELS, Kernel, Rounded
from automl.packed.linear import PackedLinear
from automl.packed.quantised import Dequantised
from automl.packed.recompute import Recomputation, recomputable
from automl.packed.segments import Segmentation
from automl.packed.workload import Workload

logger = logging.getLogger(__name__)

SHORT_ROWS = 24
"""Tokens up to which attention as batched products beats torch's flash kernel on a CPU: 1.4 to 2 times at 12 to 24."""


class PackedBackbone:
    """A frozen model whose linear layers serve the rows of many adapters; `close` gives it back as it was.

    targets: target sets of the user. precision, recompute: as in `PackedTrainer`. kernel: a name of KERNELS. body: the
    model's, under control. heads: modules that are trained in full, by path. segmentation: tells the layers which
    rows are whose.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        targets: Mapping[str, Sequence[str]],
        precision: str,
        kernel: str,
        recompute: bool,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.heads = {name: model.get_submodule(name) for name in head_modules(model)}
        self.segmentation = Segmentation()
        self._targets = targets
        self._precision = precision
        self._resolved: dict[str, list[LinearShape]] = {}
        self._norms: dict[LinearShape, float] = {}
        self._directions: dict[tuple[str, str], Directions] = {}
        self.body = Body(model)
        self._layers = _pack_layers(model, self.heads, self.segmentation, kernel)
        self._recomputation = Recomputation(recomputable(self.body.module), self.segmentation) if recompute else None
        self._packed_heads: PackedHeads | None = None
        self._first_token = _narrow_last_layer(model, self._layers)

    def layers(self, target: str) -> list[LinearShape]:
        """The layers that a target set means in this model."""
        if target not in self._resolved:
            self._resolved[target] = resolve_targets(self.model, target, self._targets)
        return self._resolved[target]

    def norms(self, layers: Sequence[LinearShape]) -> list[float]:
        """Frobenius norms of the layers' weights."""
        new = [layer for layer in layers if layer not in self._norms]
        self._norms.update(zip(new, weight_norms(self.model, new), strict=True))
        return [self._norms[layer] for layer in layers]

    def parts(self, hyper: Hyperparameters, layers: Sequence[LinearShape]) -> dict[str, Part]:
        """Parts of the weights that an adapter of these layers begins as, its own copies; empty for other starts.

        Raises TargetError if weights cannot be taken apart.
        """
        if (how := str(INIT.of(hyper))) not in PARTS:
            return {}
        check_whole(self.model, [layer.path for layer in layers], how)
        ranks = {layer.path: hyper.rank_of(layer.path) for layer in layers}
        return {path: self.first_directions(path, how, rank).part(rank, hyper.scaling) for path, rank in ranks.items()}

    def starts(self, hyper: Hyperparameters, layers: Sequence[LinearShape]) -> dict[str, Tensor]:
        """Where A of an adapter of these layers begins, by path, if its layers' inputs say; empty for other starts.

        Raises TargetError if they do not.
        """
        if INIT.of(hyper) != EVA:
            return {}
        return starting_matrices(self.model, hyper, [layer.path for layer in layers])

    def view(self, adapter: Adapter | None, heads: Mapping[str, nn.Module] | None = None) -> View:
        """The model with this adapter's heads; None is the bare backbone, under these heads if they are given."""
        if adapter is not None:
            return View(self.model, adapter.head)
        bare = {
            f"{path}.{name}": each for path, head in (heads or {}).items() for name, each in head.named_parameters()
        }
        return View(self.model, bare)

    @contextmanager
    def around(self, width: int) -> Iterator[None]:
        """What a training pass over rows of so many tokens runs inside of."""
        with _attention(width, self.device), self.casting():
            yield

    def around_losses(self, trials: int) -> AbstractContextManager[object]:
        """What the losses of so many trials are computed inside of, one after the other."""
        found = (layer.kernel for layer in self._layers if isinstance(layer.kernel, Rounded))
        output = next(found, None)
        return output.at_hand() if output is not None and trials > 1 else nullcontext()

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """What a pass of the bare backbone runs inside of, also in the middle of one of an adapter."""
        with self.segmentation.alone(None), self.casting():
            yield

    def casting(self) -> AbstractContextManager[object]:
        """The automatic casts of the precision."""
        # The cache of cast weights must not outlive a CUDA graph's recording, and frozen weights are not cast anyway.
        is_on = self._precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_on, cache_enabled=False)

    def install_bank(self, size: BankSize, workload: Workload, *, uses_graphs: bool) -> BankStep | None:
        """Room for slots that are computed together; None with a line in the log if this model or task cannot.

        So too if memory is too short for it. uses_graphs: record CUDA graphs.
        """
        losses = row_losses(workload.task)
        if not can_batch(self.heads) or losses is None:
            logger.info("slots are computed one by one: this head or this task's loss cannot be batched")
            return None
        bank = self._bank(size)
        if bank is None:
            return None
        self._packed_heads = PackedHeads(self.heads, self.segmentation)
        return BankStep(
            self.model,
            bank,
            self.segmentation,
            losses,
            device=self.device,
            limit=workload.longest_row,
            pad_id=workload.tokenizer.pad_token_id,
            around=self.around,
            uses_graphs=uses_graphs,
        )

    def close(self) -> None:
        """Take everything off the model."""
        self.body.close()
        if self._packed_heads is not None:
            self._packed_heads.close()
        if self._recomputation is not None:
            self._recomputation.close()
        for layer in self._layers:
            del self.model.get_submodule(layer.path).forward
        if self._first_token is not None:
            del self._first_token.forward

    def first_directions(self, path: str, how: str, rank: int) -> Directions:
        """The weight's first directions, as many as any trial has asked for: taking it apart costs many steps."""
        known = self._directions.get((path, how))
        if known is None or len(known.right) < rank:
            known = self._directions[path, how] = directions(self.model.get_submodule(path), how).first(rank)
        return known

    def _bank(self, size: BankSize) -> Bank | None:
        layers = [layer for target in size.targets for layer in self.layers(target)]
        try:
            return Bank(list(dict.fromkeys(layers)), self.heads, slots=size.slots, rank=size.rank, device=self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.info("slots are computed one by one: there is no memory for a bank of %d", size.slots)
            return None


def _pack_layers(
    model: nn.Module, heads: Mapping[str, nn.Module], segmentation: Segmentation, kernel: str
) -> list[PackedLinear]:
    """Take over every linear layer of the body, and the lm_head; heads that are trained stay as they are."""
    beyond = tuple(f"{name}." for name in heads)
    inside = "" if has_bare_stacks(model) else f"{model.base_model_prefix}."
    output = getattr(model, "get_output_embeddings", lambda: None)()
    packed = []
    is_held = any(map(is_quantised, model.modules()))
    for layer in linear_layers(model):
        if f"{layer.path}.".startswith(beyond):
            continue
        module = model.get_submodule(layer.path)
        is_inner = layer.path.startswith(inside) and module is not output
        packed.append(
            PackedLinear(
                layer.path,
                _kernel(module, kernel, is_inner=is_inner, is_held=is_held),
                segmentation if is_inner else None,
                dtype=_type(module, kernel),
                device=next(module.parameters()).device,
            )
        )
        module.forward = packed[-1]
    if not packed:
        raise TargetError(f"{type(model).__name__} has no linear layers below its head")
    return packed


def _kernel(module: nn.Module, name: str, *, is_inner: bool, is_held: bool) -> Kernel:
    """What computes the products of a linear layer. is_inner: it is no lm_head. is_held: the model's layers are
    quantised, so that its user wants no copies of the lm_head, and is used to products in bfloat16.
    """
    assert isinstance(module, nn.Linear | Conv1D)
    if isinstance(module, nn.Linear) and is_quantised(module):
        return Dequantised(module, torch.bfloat16 if "bf16" in name else torch.float32)
    weight = module.weight.detach()
    factory = (KERNELS if is_inner else OUTPUT_KERNELS)[name]
    if is_held and not is_inner and name.endswith("bf16h"):
        factory = Rounded
    return factory(weight.t() if isinstance(module, Conv1D) else weight, module.bias)


def _type(module: nn.Module, kernel: str) -> torch.dtype:
    """The type of what a linear layer takes and returns."""
    if is_quantised(module):
        return torch.bfloat16 if kernel == "torch-bf16" else torch.float32
    return next(module.parameters()).dtype


def _narrow_last_layer(model: nn.Module, layers: Sequence[PackedLinear]) -> nn.Module | None:
    """Leave out what a head that reads the first token only would never see; the module that does so, if any."""
    found = narrow_module(model)
    if found is None:
        return None
    path, module = found
    narrow(module)
    for layer in layers:
        layer.is_narrow = layer.path.startswith(narrowed_layers(path))
    return module


def _attention(width: int, device: torch.device) -> AbstractContextManager[None]:
    """The kernel of torch's attention for rows of this many tokens: a function of the trial's own rows alone."""
    if device.type == "cpu" and width <= SHORT_ROWS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
