"""Everything a report is made from, as plain values. No SQL, no plotly, no text, no judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from automl import ranking
from automl.metric import Direction
from automl.results.parameter_importance import ParameterImportance
from automl.results.rank_gate import RankGate
from automl.results.spending import UNKNOWN, Spending
from automl.space.spec import Parameter
from automl.storage.squeezes import SqueezeRow
from automl.storage.trials import TrialRow, counts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One configuration of a verification, with its score in each seed on the test rows.

    forgetting: mean, low and high of its interval over seeds; None if that was not measured.
    """

    name: str
    title: str
    kind: str
    trial: int | None
    params: Mapping[str, Any]
    rank_pattern: Mapping[str, int]
    trainable_params: int | None
    learning_rate: float | None
    scores: tuple[float, ...]
    mean: float | None
    sd: float | None
    forgetting: tuple[float, float, float] | None = None

    @property
    def called(self) -> str:
        """What it is called in a few words."""
        names = {"default": "the default", "suggested": "suggested ranks", "uniform": "even ranks"}
        names |= {"random": "random ranks", "equal": "LoRA of equal size"}
        names |= {"squeezed": "the winner cut globally", "even-cut": "the winner cut evenly"}
        if self.kind == "lower":
            return f"rank {self.params['rank']} at its own rate"
        if self.kind == "method":
            return f"{self.params['method']} (trial {self.trial})"
        return names.get(self.kind) or (f"trial {self.trial}" if self.trial is not None else self.title)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """A paired difference between two arms, `arm` minus `against`, with its interval at the confidence `level`."""

    arm: str
    against: str
    difference: float
    low: float
    high: float
    level: float
    seeds: int
    wins: int | None
    verdict: str
    detectable: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """The best trial of one method, verified. peak_bytes: memory of a step; seconds: of a training; None: not known.

    difference, low, high, level, verdict: how it stands against the reference; None for that itself.
    """

    method: str
    mean: float
    sd: float
    trainable_params: int
    peak_bytes: int | None
    seconds: float | None
    learning_rate: float
    difference: float | None
    low: float | None
    high: float | None
    level: float | None
    verdict: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationFrame:
    """The latest verification that is done, else the latest. done is False while it runs; then only number and
    started_at say something.

    seeds, planned_seeds: how many were and would have been spent. optimism: by how much the winner's validation value
    flattered it, optimism_low, optimism_high: its interval, if fresh seeds were scored on those rows. optimism_step:
    to which they were trained, if the search chose the winner's checkpoint too. recommendation:
    name of an arm, empty if none is recommended; advice: the same in words. deploy: which adapter to deploy, in words,
    if any was cut. suggestion_status: not_run, passed, no_gain or worse. methods: best mean first, none if the search
    had one; reference: the one that the others are held against; methods_text: what may be said of them.
    """

    number: int
    done: bool
    started_at: datetime
    metric: str = ""
    majority: float | None = None
    beats_majority: bool = True
    headline: str = ""
    seeds: int = 0
    planned_seeds: int = 0
    arms: tuple[Arm, ...] = ()
    comparisons: tuple[PairedDifference, ...] = ()
    optimism: float | None = None
    optimism_low: float | None = None
    optimism_high: float | None = None
    optimism_step: int | None = None
    recommendation: str = ""
    advice: str = ""
    deploy: str = ""
    suggestion_status: str = "not_run"
    methods: tuple[MethodRow, ...] = ()
    reference: str = ""
    methods_text: str = ""

    def arm(self, name: str) -> Arm | None:
        """The arm of this name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def called(self, name: str) -> str:
        """What the arm of this name is called in a few words."""
        arm = self.arm(name)
        return name if arm is None else arm.called


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShare:
    """One adapted module. share: its part of the importance of all modules; low, high: its 90 % interval when trials
    are drawn anew, or the least and most of the trials where they are too few for that. held_out: predicted rise of the
    held-out loss without its update."""

    module: str
    layer: int | None
    kind: str
    share: float
    low: float
    high: float
    held_out: float | None
    effective_rank: float
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSuggestion:
    """A suggested rank per module and what it rests on; without ranks, `note` says why there are none.

    ranks: those of the winner's adapter cut to a size; 0: none. energies: part of the strength of all kept directions.
    status: as ranks to train with, by a verification: not_run, passed, no_gain or worse. Unless it has passed, they
    are a hypothesis.
    """

    ranks: Mapping[str, int]
    energies: Mapping[str, float] = field(default_factory=dict)
    uniform_rank: int | None = None
    used_params: int | None = None
    status: str = "not_run"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFrame:
    """A study as a report draws it: the rows of `Summary` with their curves, and what they were trained on and with.

    trials: by number, with their curves; value: at the last measurement, of one that has not ended too.
    metrics: names of what is measured beside the objective.
    planned_steps: of a full trial, on the grid of curves; own_steps: those that each trial makes itself, by number;
    step_rows: rows of a step of that grid, None where all trials make the same steps.
    baseline: objective without training. ground: fingerprints and sizes of model and data, as the search noted them.
    spending: time of devices, tokens, examples and money, beside the budget.
    squeeze: what was found of smaller sizes of the winner's adapter, None if nobody has looked.
    gate: whether the rank binds; None for a table of curves. also_minimize: the second objective, trainable_params or
    seconds or forgetting, empty if there is one only. keep: the metric whose loss on other text is forgetting, empty if
    that is not measured. forgetting_limit: what a constraint allows, None if none says just that.
    """

    study: str
    metric: str
    direction: Direction
    model: str
    task: str
    data: str
    planned_trials: int
    planned_steps: int
    own_steps: Mapping[int, int]
    sampler: str
    pruner: str
    seed: int
    parameters: tuple[Parameter, ...]
    trials: tuple[TrialRow, ...]
    baseline: float | None
    ground: Mapping[str, Any]
    provenance: Mapping[str, Any]
    space_text: str
    database: str
    runs: int
    started_at: datetime | None
    ended_at: datetime | None
    parameter_importance: ParameterImportance
    module_importance: tuple[ModuleShare, ...] = ()
    verification: VerificationFrame | None = None
    suggestion: RankSuggestion | None = None
    squeeze: SqueezeRow | None = None
    gate: RankGate | None = None
    also_minimize: str = ""
    keep: str = ""
    forgetting_limit: float | None = None
    metrics: tuple[str, ...] = ()
    spending: Spending = UNKNOWN
    step_rows: int | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state, every state named."""
        return counts_of(self.trials)

    @property
    def complete(self) -> list[TrialRow]:
        """Complete trials with a value, best first; of equals the smaller if size is an objective, then the earlier."""
        return ranking.complete(self.trials, self.direction)

    @property
    def best(self) -> TrialRow | None:
        """The best complete trial."""
        return ranking.best(self.trials, self.direction)

    @property
    def is_rank_free(self) -> bool:
        """Whether a low rank is as good, so that no ranks by module are advice."""
        return self.gate is not None and self.gate.answer == "does not bind"

    def size(self, trial: TrialRow) -> float | None:
        """What quality is held against: trainable parameters, or training seconds if these are the second objective."""
        return trial.seconds if self.also_minimize == "seconds" else trial.trainable_params


def place_of(module: str) -> tuple[int | None, str]:
    """Layer number and kind of a module: `encoder.layer.3.attention.self.query` is (3, "attention.self.query")."""
    parts = module.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return None, module
    return int(parts[numbers[0]]), ".".join(parts[numbers[0] + 1 :]) or parts[numbers[0] - 1]
