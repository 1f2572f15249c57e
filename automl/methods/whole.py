"""Weights of the backbone itself as what is trained: full fine-tuning, and BitFit (Ben Zaken et al. 2022).

They are what adapters are held against. A trial trains copies, which stand in the place of the shared weights as long
as it is on them; so it trains alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.errors import TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint, Stateless
from automl.methods.lora import learning_rates
from automl.methods.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor, nn

SLOWER = 10.0
"""LoRA's best rates over those of full fine-tuning. Source: Schulman et al. 2025, LoRA Without Regret."""

NORMS = Setting(
    name="bitfit_norms",
    default=False,
    meaning="train the weights of norms beside biases",
    tried=(False, True),
    sized=True,
)


EIGHT_BITS = "adamw_8bit"
OPTIMIZER = Setting(
    name="optimizer",
    default="adamw",
    meaning="adamw_8bit holds AdamW's moments in 8 bits",
    choices=("adamw", EIGHT_BITS),
    tried=("adamw", EIGHT_BITS),
    quant=(EIGHT_BITS,),
    sized=True,
)
SMALLEST, MOMENT_BLOCK = 4096, 256
"""Elements of the smallest tensor whose moments are held in 8 bits, and how many share a scale: bitsandbytes' own."""


class InPlace(Stateless):
    """A method that trains some of the model's own parameters; it says which."""

    @abstractmethod
    def is_trained(self, name: str, parameter: nn.Parameter, hyper: Hyperparameters) -> bool:
        """Whether a parameter of the backbone is trained. name: its own, in the model."""

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        """Parameters of the backbone; raises TargetError if it has none of those."""
        chosen = self.chosen(model, hyper)
        if not chosen:
            raise TargetError(
                f"{type(model).__name__} has nothing that method {hyper.method} trains; use another method"
            )
        return sum(parameter.numel() for parameter in chosen.values())

    def attach(
        self,
        model: nn.Module,
        hyper: Hyperparameters,
        modules: Sequence[str],
        head: Sequence[str],
        seed: int,
        *,
        steps: int | None = None,
    ) -> Any:
        """Let the model itself be trained; it is what is returned. Raises TargetError if that cannot be."""
        from automl.methods.in_place import fresh_heads

        if hyper.rank_pattern:
            raise TargetError(f"method {hyper.method} has no ranks; a rank pattern is for method lora")
        chosen = self.chosen(model, hyper)
        others = {str(parameter.dtype).removeprefix("torch.") for parameter in chosen.values()} - {"float32"}
        if others:
            raise TargetError(
                f"method {hyper.method} trains the model's own weights, which are {others.pop()}; use precision fp32"
            )
        fresh_heads(model, head, seed)
        _train_copies(model, chosen.values())
        return model

    def exported(
        self, peft_model: Any, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return saved, config

    def chosen(self, model: Any, hyper: Hyperparameters) -> dict[str, nn.Parameter]:
        """Parameters of the backbone, and of the output over the vocabulary, that are trained."""
        output = model.get_output_embeddings()
        body = model.base_model_prefix
        inside = f"{body}." if hasattr(model, body) else ""  # a T5 that writes has its stacks at the top
        own = {id(parameter) for parameter in output.parameters()} if output is not None else set()
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if (name.startswith(inside) or id(parameter) in own) and self.is_trained(name, parameter, hyper)
        }


class Full(InPlace):
    """Every parameter: what adapters are meant to save."""

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = False
    quantizable: ClassVar[bool] = False
    halvable: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset()
    settings: ClassVar[tuple[Setting, ...]] = (OPTIMIZER,)

    def is_trained(self, name: str, parameter: nn.Parameter, hyper: Hyperparameters) -> bool:
        return True

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """Every parameter; moments in 8 bits spare six bytes of eight in large tensors, but for the scales."""
        sizes = [parameter.numel() for parameter in self.chosen(model, hyper).values()]
        large = [size for size in sizes if size >= SMALLEST] if OPTIMIZER.of(hyper) == EIGHT_BITS else []
        spared = sum(6 * size - 8 * math.ceil(size / MOMENT_BLOCK) for size in large)
        return Footprint(self.trainable(model, layers, hyper), 0, spared=spared)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """LoRA's over SLOWER: 1e-5 to 2e-3 for BERT in short trials, where 1e-5 to 5e-5 is usual for long ones."""
        low, high = learning_rates(model_parameters, steps)
        return low / SLOWER, high / SLOWER


class BitFit(InPlace):
    """Biases; with `bitfit_norms` every vector, which are biases and norms."""

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = False
    quantizable: ClassVar[bool] = False
    halvable: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset()
    settings: ClassVar[tuple[Setting, ...]] = (NORMS,)

    def is_trained(self, name: str, parameter: nn.Parameter, hyper: Hyperparameters) -> bool:
        return name.endswith("bias") or (bool(NORMS.of(hyper)) and parameter.dim() == 1)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        return Footprint(self.trainable(model, layers, hyper), 0)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """LoRA's; its authors' program has 1e-3 for BERT (AdamW), T-Few 3e-4 for T0-3B (Adafactor)."""
        return learning_rates(model_parameters, steps)


def _train_copies(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Put copies that are trained in the place of these parameters, wherever the model has them."""
    from torch import nn

    from automl.methods.in_place import substitute

    copies = {id(parameter): nn.Parameter(parameter.detach().clone()) for parameter in parameters}
    places = [(owner, name, each) for owner in model.modules() for name, each in owner.named_parameters(recurse=False)]
    for owner, name, parameter in places:
        if id(parameter) in copies:
            substitute(model, owner, name, copies[id(parameter)])
