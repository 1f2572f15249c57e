"""The seam for PEFT methods: how an adapter is put on a backbone, saved, restored and taken off again, and its size.

The file of a method is read wherever a space file is checked, so PEFT and torch are imported in the functions that use
them: they take seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from automl.errors import CheckpointError, TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.settings import Exclusion, Setting

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn


LOW_RANK = frozenset({"rank", "alpha", "alpha_ratio", "dropout", "target", "use_rslora"})
"""The general hyperparameters that are about low-rank updates of a target set."""


class Footprint(NamedTuple):
    """What a trial holds at most: trained parameters, the head's aside, and float32 numbers that are kept for the
    backward pass, those of the backbone aside: per_token and per_row for each of them, per_pass once for all.

    virtual_tokens: positions that it puts before the tokens of every row. spared: bytes that its optimizer takes less
    than two moments of float32 for each parameter. begins: path of the module to whose output the first update is
    added, so that below it nothing is kept; empty: gradients go down to the embeddings.
    """

    parameters: int
    per_token: int
    per_row: int = 0
    virtual_tokens: int = 0
    spared: int = 0
    per_pass: int = 0
    begins: str = ""


def check_exclusions(method: Method, hyper: Hyperparameters) -> None:
    """Raise TargetError if the method's settings exclude each other."""
    for exclusion in method.exclusions:
        if exclusion.excludes(method.settings, hyper):
            given = " and ".join(
                f"{setting.name} {setting.of(hyper)}" for setting in method.settings if setting.name in exclusion.values
            )
            raise TargetError(f"{given}: {exclusion.reason}; leave one of them out")


class LowRank(NamedTuple):
    """The update of one layer: scaling * b @ a. a: (rank, in); b: (out, rank), of a model in training a parameter."""

    path: str
    a: torch.Tensor
    b: torch.Tensor
    scaling: float


class Method(ABC):
    """A way to adapt a frozen backbone. Implementations say how to attach; the rest is the same for all.

    packable: several adapters of it can be trained together on one backbone, where a pack trains B and A of LoRA and
    starts them as `seeding.initialise_adapter` does. shardable: several processes can hold one trial together.
    settings: hyperparameters of its own. exclusions: values of them that do not go together. takes: those of LOW_RANK
    that it uses; the others cannot be chosen for it. takes_pattern: a rank of its own in each layer can be given.
    finds_ranks: it changes ranks while it trains, so that a trial ends with others than it was given. quantizable,
    halvable: a backbone in few bits will do, or one in 16. mergeable: what it trains can become part of the model's own
    weights.

    Methods hold no state; all of it is in the adapted model that `attach` returns. That is PEFT's model around the
    backbone, or the backbone itself, adapted by means of `automl.methods.in_place`; of such a model PEFT knows nothing,
    so its adapter is written and loaded by us (`automl.load_adapter`), and merged it is saved as it is.
    """

    packable: ClassVar[bool]
    shardable: ClassVar[bool]
    settings: ClassVar[tuple[Setting, ...]] = ()
    exclusions: ClassVar[tuple[Exclusion, ...]] = ()
    takes: ClassVar[frozenset[str]] = LOW_RANK
    takes_pattern: ClassVar[bool] = False
    finds_ranks: ClassVar[bool] = False
    quantizable: ClassVar[bool] = True
    halvable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True

    @abstractmethod
    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        """Parameters it trains if it adapts these layers, without the head: what constraints and plans count.

        model: the backbone with its head, of which there may be shapes only. Raises TargetError if the method cannot
        adapt this model.
        """

    @abstractmethod
    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """What memory is planned by; arguments as for `trainable`."""

    @abstractmethod
    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """Smallest and largest peak learning rate worth a trial, with AdamW: the range of `learning_rate: auto`.

        model_parameters: the backbone's. steps: those of a full trial.
        """

    @abstractmethod
    def attach(
        self,
        model: nn.Module,
        hyper: Hyperparameters,
        modules: Sequence[str],
        head: Sequence[str],
        seed: int,
        *,
        steps: int | None = None,
    ) -> nn.Module:
        """Put a new adapter on the backbone and return the adapted model; the backbone is changed in place.

        modules: full paths of the layers to adapt. head: top-level modules trained in full, from a fresh start.
        Adapter, head and dropout masks depend on `seed` alone, not on the global generators. Call it after the
        backbone is on its device. Trainable parameters are float32 whatever the backbone's dtype. steps: those of the
        whole trial, for methods that change the adapter by a schedule. Raises TargetError, the backbone as it was, if
        the method cannot adapt this model.
        """

    @abstractmethod
    def low_rank(self, peft_model: PeftModel) -> list[LowRank]:
        """The updates as they are now, in module order; none if the method's updates are not products of two matrices.

        a may be a product of several parameters; b is the parameter itself.
        """

    @abstractmethod
    def penalty(self, peft_model: PeftModel) -> torch.Tensor | None:
        """What is minimised beside the loss of the task and is no part of it, (); None if there is nothing."""

    @abstractmethod
    def rate(self, name: str, hyper: Hyperparameters) -> float:
        """Factor of the learning rate for the parameter of this name; 1 unless the method says otherwise."""

    @abstractmethod
    def after_step(self, peft_model: PeftModel, step: int) -> None:
        """Called after the optimizer's step number `step` (from 0), while its gradients are still there."""

    @abstractmethod
    def memory(self, peft_model: PeftModel) -> dict[str, torch.Tensor]:
        """What the method keeps beside the trainable tensors and needs to go on to the bit; copies on the CPU."""

    @abstractmethod
    def load_memory(self, peft_model: PeftModel, memory: Mapping[str, torch.Tensor]) -> None:
        """Put back what `memory` returned. Raises CheckpointError if it is not of this adapter."""

    @abstractmethod
    def exported(
        self, peft_model: PeftModel, saved: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
        """Tensors and configuration of the adapter's folder, from those that PEFT would write; not asked in place.

        saved: by PEFT's names in files. config: PEFT's, as JSON.
        """

    def state(self, peft_model: PeftModel) -> dict[str, torch.Tensor]:
        """Exactly the trainable tensors, adapter and head, by parameter name. They share memory with the model."""
        return {name: tensor.detach() for name, tensor in peft_model.named_parameters() if tensor.requires_grad}

    def load_state(self, peft_model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy tensors of `state` back; raises CheckpointError unless names and shapes are exactly the model's."""
        own = self.state(peft_model)
        differing = sorted(own.keys() ^ tensors.keys()) or sorted(
            name for name, tensor in own.items() if tensor.shape != tensors[name].shape
        )
        if differing:
            raise CheckpointError(f"{len(differing)} adapter tensors do not fit the model, {differing[0]} among them")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def detach(self, peft_model: PeftModel) -> nn.Module:
        """Take the adapter off and return the backbone as it was before `attach`, bit for bit, frozen, in eval mode."""
        from automl.methods.in_place import is_in_place, restored

        return restored(peft_model) if is_in_place(peft_model) else _unloaded(peft_model)


def _unloaded(peft_model: PeftModel) -> nn.Module:
    """The backbone that PEFT's model is around, alone again.

    PEFT's own unload refuses for some tuners on quantised layers, and leaves the trained copy of the head in place
    (peft 0.21, tuners/ia3/model.py and utils/other.py).
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from torch import nn

    backbone = peft_model.get_base_model()
    for path, module in list(backbone.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            backbone.set_submodule(path, module.original_module)
        elif isinstance(module, BaseTunerLayer):
            backbone.set_submodule(path, module.get_base_layer())
    vars(backbone).pop("peft_config", None)
    assert isinstance(backbone, nn.Module)
    return backbone.eval()


class Stateless(Method):
    """Methods that are their trained tensors alone: one rate for all, no penalty, no schedule, nothing to remember.

    Their updates are not products of two matrices.
    """

    def low_rank(self, peft_model: PeftModel) -> list[LowRank]:
        return []

    def penalty(self, peft_model: PeftModel) -> torch.Tensor | None:
        return None

    def rate(self, name: str, hyper: Hyperparameters) -> float:
        return 1.0

    def after_step(self, peft_model: PeftModel, step: int) -> None:
        """Nothing is left to do."""

    def memory(self, peft_model: PeftModel) -> dict[str, torch.Tensor]:
        return {}

    def load_memory(self, peft_model: PeftModel, memory: Mapping[str, torch.Tensor]) -> None:
        """There is nothing to put back."""
