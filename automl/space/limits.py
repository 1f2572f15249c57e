"""The names a space file may use, with type and bounds of their values: everybody's, those of methods and of tasks.

Bounds keep numbers sane (a typo such as rank 10,000), they are not advice; advice by model size is in
`automl.space.defaults`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from automl.lora import ScheduleName
from automl.methods.base import LOW_RANK
from automl.methods.peft_tuners import tuners_with
from automl.methods.registry import METHODS
from automl.methods.settings import Setting
from automl.space.constraints import Kind
from automl.space.entries import TASKS
from automl.space.named import NameIn
from automl.space.spec import When
from automl.trial import Scalar

Method = Annotated[str, NameIn(METHODS), Field(description="PEFT method")]
Rank = Annotated[int, Field(ge=1, le=1024, description="rank of the low-rank update")]
Alpha = Annotated[
    float, Field(ge=1e-6, le=65_536, description="numerator of the update's scale, as an absolute number")
]
AlphaRatio = Annotated[float, Field(ge=1e-6, le=1024, description="alpha as a multiple of the rank; instead of alpha")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="dropout before the low-rank update")]
Target = Annotated[str, Field(min_length=1, max_length=50, description="name of a target set: which layers to adapt")]
LearningRate = Annotated[float, Field(ge=1e-12, le=10, description="peak learning rate")]
WeightDecay = Annotated[float, Field(ge=0, le=10, description="AdamW's decoupled weight decay")]
BatchSize = Annotated[int, Field(ge=1, le=4096, description="rows per optimizer step")]
Warmup = Annotated[float, Field(ge=0, le=1, description="share of all steps over which the learning rate rises")]
Schedule = Annotated[ScheduleName, Field(description="course of the learning rate after the warm-up")]
Clip = Annotated[float, Field(ge=0, le=1_000_000, description="largest gradient norm; 0 = no clipping")]
Switch = Annotated[bool, Field(description="scale by alpha / sqrt(rank) (rank-stabilised LoRA)")]
Noise = Annotated[float, Field(ge=0, le=1000, description="noise on embeddings while training (NEFTune); 0 = none")]
MaxLength = Annotated[int, Field(ge=8, le=131_072, description="tokens per example; longer ones are cut")]

_ADAPTERS: dict[str, TypeAdapter[Scalar]] = {
    "method": TypeAdapter(Method),
    "rank": TypeAdapter(Rank),
    "alpha": TypeAdapter(Alpha),
    "alpha_ratio": TypeAdapter(AlphaRatio),
    "dropout": TypeAdapter(Dropout),
    "target": TypeAdapter(Target),
    "learning_rate": TypeAdapter(LearningRate),
    "weight_decay": TypeAdapter(WeightDecay),
    "batch_size": TypeAdapter(BatchSize),
    "warmup": TypeAdapter(Warmup),
    "schedule": TypeAdapter(Schedule),
    "clip": TypeAdapter(Clip),
    "use_rslora": TypeAdapter(Switch),
    "neftune_alpha": TypeAdapter(Noise),
}

NAMES = tuple(_ADAPTERS)
"""Every name that is known whatever the method, in the order in which parameters are sampled."""

_WHOLE_NUMBERS = frozenset({"rank", "batch_size"})
_TEXTS = frozenset({"method", "target", "schedule"})
_SWITCHES = frozenset({"use_rslora"})
DERIVED = frozenset({"trainable_params"})
"""Names that only constraints may use: they follow from the model and the other parameters."""

RATE = "learning_rate"
"""The name that a method may have a range of its own for, as `learning_rate.full`."""


def own_rate(method: str) -> str:
    """Name of the learning rates of this method alone, where several are searched."""
    return f"{RATE}.{method}"


def plain(name: str) -> str:
    """The hyperparameter that a parameter of this name is a range of: `learning_rate` of `learning_rate.full`."""
    return RATE if name.startswith(own_rate("")) else name


def _default(setting: Setting) -> Sequence[Scalar]:
    return (setting.default,)


class Names:
    """What `space:`, `fixed:` and `enqueue:` may name where trials are trained by one of these methods on this task.

    own: the settings of methods and task by name, in their order. clash: what two of them mean differently, in words;
    or empty.
    """

    def __init__(
        self, methods: Iterable[str], task: str = "", values: Callable[[Setting], Sequence[Scalar]] = _default
    ) -> None:
        """task: its type if it brings settings, else empty. values: those that a setting of the task may have."""
        self.methods = tuple(methods)
        self.task = task
        self.own: dict[str, Setting] = {}
        self.clash = ""
        self._of_task = {setting.name: setting for setting in TASKS[task].settings} if task else {}
        self._values = values
        for method in self.methods:
            for setting in METHODS[method].settings:
                if self.own.setdefault(setting.name, setting) != setting:
                    other = self.methods_with(setting.name)[0]
                    self.clash = f"methods {other} and {method} mean different things by {setting.name!r}"
        for name, setting in self._of_task.items():
            if self.own.setdefault(name, setting) is not setting:
                self.clash = f"the task {task} and a method mean different things by {name!r}"

    def __iter__(self) -> Iterator[str]:
        return iter((*NAMES, *self.own))

    def __contains__(self, name: object) -> bool:
        return name in NAMES or name in self.own

    def methods_with(self, name: str) -> tuple[str, ...]:
        """Those of the methods that a name means something for, as it does for all unless the adapter is made by it."""
        return self.methods if name in self._of_task else tuple(each for each in self.methods if has(each, name))

    def owner(self, name: str) -> str:
        """The method whose learning rates these are alone; empty if they are not one's alone."""
        return next((method for method in self.methods if len(self.methods) > 1 and name == own_rate(method)), "")

    def without_own_rates(self, given: Collection[str]) -> tuple[str, ...]:
        """The methods that share `learning_rate` in a space of these names."""
        return tuple(method for method in self.methods if own_rate(method) not in given)

    def condition(self, name: str, given: Collection[str] = ()) -> When | None:
        """The condition of a name that only some methods, or some values of another setting, have: one of these.

        given: all names that are searched.
        """
        methods = self.methods_with(name) if name != RATE else self.without_own_rates(given)
        if owner := self.owner(name):
            methods = (owner,)
        if methods != self.methods:
            return When(parameter="method", values=methods)
        having = self._having(name)
        if having is None or len(having[1]) in (0, len(self._values(having[0]))):
            return None  # none: refused for what `idle` says
        return When(parameter=having[0].name, values=having[1])

    def idle(self, name: str) -> str:
        """With which values of another setting a name means nothing, if it does with none that can be chosen."""
        having = self._having(name)
        if having is None or having[1]:
            return ""
        return f"{having[0].name} {' or '.join(map(str, self._values(having[0])))}"

    def _having(self, name: str) -> tuple[Setting, tuple[Scalar, ...]] | None:
        """The setting on which one of the task depends, and its values that can be chosen and with which it counts."""
        if name not in self._of_task or (needed := self._of_task[name].having) is None:
            return None
        other = self._of_task[needed[0]]
        return other, tuple(value for value in self._values(other) if value in needed[1])

    def ordered(self, names: Collection[str]) -> list[str]:
        """These in the order in which they are sampled."""
        rates = [own_rate(method) for method in self.methods]
        every = (each for name in self for each in (name, *(rates if name == RATE else ())))
        return [name for name in every if name in names]

    def is_of_task(self, name: str) -> bool:
        """Whether the task brings it."""
        return name in self._of_task

    def is_chosen(self, name: str) -> bool:
        """Whether its values are texts or true and false, which have no range."""
        if name in self.own:
            return self.own[name].kind in ("text", "truth")
        return name in _TEXTS or name in _SWITCHES

    def is_whole(self, name: str) -> bool:
        """Whether its values are whole numbers."""
        return self.own[name].kind == "whole" if name in self.own else name in _WHOLE_NUMBERS

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kind of every name that a constraint may use."""
        own = {name: _CONSTRAINED.get(setting.kind, "number") for name, setting in self.own.items()}
        return KINDS | own

    def checked(self, name: str, value: object) -> Scalar:
        """The value as the hyperparameter's own type (8 -> 8.0 for a float). Raises pydantic's ValidationError."""
        adapter = adapter_of(self.own[name]) if name in self.own else _ADAPTERS[plain(name)]
        found: Scalar = adapter.validate_python(value, strict=True)
        return found


def has(method: str, name: str) -> bool:
    """Whether a name means something for this method."""
    if name in NAMES:
        return name not in LOW_RANK or name in METHODS[method].takes
    return any(setting.name == name for setting in METHODS[method].settings)


def bringing(name: str) -> list[str]:
    """All methods there are that bring a setting of this name."""
    methods = [*METHODS.usable(), *tuners_with(name)]
    return [method for method in methods if name not in NAMES and has(method, name)]


def every_setting() -> dict[str, Setting]:
    """The settings of all methods and tasks there are, by name."""
    groups = [each.settings for each in METHODS.usable().values()] + [each.settings for each in TASKS.usable().values()]
    return {setting.name: setting for group in groups for setting in group}


def tasks_bringing(name: str) -> list[str]:
    """All tasks there are that bring a setting of this name."""
    return [task for task, entry in TASKS.usable().items() if any(each.name == name for each in entry.settings)]


FIELDS = r"^[a-z0-9_]+\.[A-Za-z0-9_:-]+$"
"""What names of the fields of a tuner of PEFT look like, which are not listed: `vera.r`."""


@lru_cache(maxsize=256)
def adapter_of(setting: Setting) -> TypeAdapter[Any]:
    """What checks its values, and says in the JSON Schema what they are."""
    kind: Any = type(setting.default)
    if setting.choices:
        kind = Literal[setting.choices]
    bounds = {name: bound for name, bound in (("ge", setting.low), ("le", setting.high)) if bound is not None}
    return TypeAdapter(Annotated[kind, Field(description=setting.meaning, **bounds)])


_CONSTRAINED: Mapping[str, Kind] = {"text": "text", "truth": "truth"}

KINDS: dict[str, Kind] = {
    name: "text" if name in _TEXTS else "truth" if name in _SWITCHES else "number"
    for name in (*NAMES, *sorted(DERIVED))
}
"""Kind of every name that a constraint may use, whatever the method."""
