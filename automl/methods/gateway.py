"""The gateway to every tuner of the installed PEFT that is no method of its own here: `peft:vera`, `peft:loha`, ….

PEFT's own layers are trained, one trial at a time, from a start that follows from the trial's seed. How many parameters
that is, and what is kept for the backward pass, is found by building the adapter on shapes without numbers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from automl.errors import PluginError, TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint, Stateless
from automl.methods.lora import learning_rates
from automl.methods.peft_tuners import (
    ELSEWHERE,
    LEFT_TO_PEFT,
    fields_of,
    reads_quantised,
    settings_of,
    tuner_names,
)
from automl.nearest import did_you_mean

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

FAST = frozenset({"vera", "pvera", "fourierft", "road", "c3a", "beft", "unilora"})
"""Tuners that train scales, or coefficients of directions which are fixed.

VeRA's authors (Kopiczko et al. 2023, section 4) train at ten times LoRA's rates; for the others that is a rule of ours.
"""
FASTER = 10.0

_BY_WEIGHTS = "is made of the model's weights, without which a plan cannot count it; use another method"
_BY_NUMBERS = "chooses among numbers in every pass, so that a plan cannot count it without them; use another method"
UNFIT: Mapping[str, str] = {
    **dict.fromkeys(("adamss", "frod", "shira", "tinylora"), _BY_WEIGHTS),
    **dict.fromkeys(("vblora", "waveft"), _BY_NUMBERS),
    "pvera": "draws random numbers in every pass, so that a trial could not go on as it was; use peft:vera",
    "shadow": "is a second network with a loss of its own; use method adapter",
}
"""Tuners that would not be trained as the other methods are, and why."""

_counted: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Footprint]] = WeakKeyDictionary()


def method_of(tuner: str) -> type[Tuner]:
    """The method `peft:<tuner>`. Raises PluginError, with what there is instead, if it cannot be reached."""
    if tuner in ELSEWHERE:
        raise PluginError(f"PEFT's {tuner} {ELSEWHERE[tuner]}")
    if tuner in UNFIT:
        raise PluginError(f"PEFT's {tuner} {UNFIT[tuner]}")
    if tuner not in (known := tuner_names()):
        fit = [name for name in known if name not in UNFIT]
        raise PluginError(
            f"the installed PEFT has no tuner {tuner!r}; it has {', '.join(fit)}{did_you_mean(tuner, fit)}"
        )
    parts = {"tuner": tuner, "settings": settings_of(tuner), "quantizable": reads_quantised(tuner)}
    return type(f"Tuner_{tuner}", (Tuner,), {**parts, "__doc__": f"PEFT's {tuner}.", "__module__": __name__})


class Tuner(Stateless):
    """A tuner of PEFT as a method; the fields of its configuration are the settings. tuner: its name."""

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset({"target"})
    tuner: ClassVar[str]

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        return self.footprint(model, layers, hyper).parameters

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """What is trained, and what PEFT's layers keep for the backward pass, which is known from running them."""
        from automl.methods.tuner_shapes import footprint_of, without_numbers

        known = _counted.setdefault(model, {})
        key = (self.tuner, tuple(layer.path for layer in layers), hyper.own)
        if key not in known:
            shapes = without_numbers(model)
            adapted = self._adapted(shapes, hyper, [layer.path for layer in layers], head=None, seed=0)
            with _in_a_line(self.tuner, model):
                known[key] = footprint_of(adapted, layers)
        return known[key]

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """LoRA's range, and ten times that for tuners in FAST."""
        low, high = learning_rates(model_parameters, steps)
        return (FASTER * low, FASTER * high) if self.tuner in FAST else (low, high)

    def attach(
        self,
        model: nn.Module,
        hyper: Hyperparameters,
        modules: Sequence[str],
        head: Sequence[str],
        seed: int,
        *,
        steps: int | None = None,
    ) -> PeftModel:
        """Attach as the seam says; raises TargetError, too, for whatever PEFT refuses."""
        from automl.methods.attaching import renew_head
        from automl.methods.tuner_shapes import seed_dropout

        if hyper.rank_pattern:
            raise TargetError(f"method {hyper.method} takes no rank pattern, which is for method lora")
        peft_model = self._adapted(model, hyper, modules, head=head, seed=seed)
        renew_head(model, head, seed)
        seed_dropout(model, seed, next(model.parameters()).device)
        return peft_model

    def exported(
        self, peft_model: PeftModel, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return saved, config

    def _adapted(
        self, model: nn.Module, hyper: Hyperparameters, modules: Sequence[str], *, head: Sequence[str] | None, seed: int
    ) -> Any:
        """PEFT's model around the backbone, started from the seed, trained parameters in float32.

        head: as for `attach`; None: nothing is trained but the adapter. Raises TargetError, the backbone as it was.
        """
        import torch

        from automl.methods.attaching import adapted_model, check_anchored
        from automl.methods.tuner_shapes import adapted_paths, seeded

        check_anchored(model, modules)
        device = next(model.parameters()).device
        before = {path: model.get_submodule(path) for path in (*modules, *(head or ()))}
        try:
            with _in_a_line(self.tuner, model) as said, seeded(seed, self.tuner, device):
                config = self._config(model, hyper, modules, head)
                peft_model = adapted_model(model, config)
            _check_kept(config, said)
            if others := sorted(adapted_paths(model) ^ set(modules)):
                raise TargetError(f"PEFT adapts other layers than those of the target set, '{others[0]}' among them")
        except TargetError:
            for path, module in before.items():
                model.set_submodule(path, module)
            raise
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
        return peft_model

    def _config(
        self, model: nn.Module, hyper: Hyperparameters, modules: Sequence[str], head: Sequence[str] | None
    ) -> PeftConfig:
        """PEFT's configuration with the fields that are given."""
        from peft import PeftType
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        from automl.methods.attaching import common_options

        common = common_options(model, modules, head or ())
        if head is None:
            common["task_type"] = None
        known = {*fields_of(self.tuner), "task_type"}
        common = {name: value for name, value in ({"progressbar": False} | common).items() if name in known}
        given = {setting.name.partition(".")[2]: setting.of(hyper) for setting in self.settings}
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.tuner.upper())]
        return kind(**common, **{name: value for name, value in given.items() if value != LEFT_TO_PEFT})


def _check_kept(config: PeftConfig, said: Sequence[warnings.WarningMessage]) -> None:
    """Raise TargetError if PEFT has warned that it builds something else than the configuration says."""
    factor = getattr(config, "boft_n_butterfly_factor", 1)
    if factor != 1 and any("Setting boft_n_butterfly_factor to 1" in str(warning.message) for warning in said):
        raise TargetError(
            f"PEFT's boft would take boft_n_butterfly_factor 1 for {factor}: its CUDA extension, which others need, "
            "cannot be built on this machine; give 1, or nothing"
        )


@contextmanager
def _in_a_line(tuner: str, model: nn.Module) -> Iterator[Sequence[warnings.WarningMessage]]:
    """What PEFT refuses inside, by whatever error, becomes a TargetError; what it warns of is given, and logged."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield said
        except TargetError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TargetError(f"PEFT's {tuner} cannot adapt {type(model).__name__}: {reason[:300]}") from error
    for warning in said:
        logger.debug("PEFT's %s: %s", tuner, warning.message)
