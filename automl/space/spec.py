"""What a space file means, once loaded: frozen values that the rest of the program reads.

Built by `automl.space.load`; the pydantic classes of `automl.space.schema` never leave `automl.space`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from automl.space.constraints import Constraint
from automl.trial import Scalar

EVALUATE_EVERY = 10
"""Steps between measurements of tables, and of studies begun when this was the default, if their files do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Condition on an earlier parameter: active only if that parameter has one of these values."""

    parameter: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatParameter:
    """A real number in [low, high]; `log` samples its logarithm uniformly, `step` makes a grid (never both).

    at_alpha: of learning rates alone: what is searched is the rate at this alpha, from which follows the one that a
    trial is trained with (`automl.space.coordinate`). None: they are the same.
    """

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When | None = None
    at_alpha: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntParameter:
    """A whole number in [low, high], both included."""

    name: str
    low: int
    high: int
    log: bool = False
    step: int = 1
    when: When | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalParameter:
    """One of the given scalars, without an order."""

    name: str
    choices: tuple[Scalar, ...]
    when: When | None = None


Parameter = FloatParameter | IntParameter | CategoricalParameter


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Named parameters in an order in which every condition refers to an earlier one.

    auto: names whose range was left to the defaults by model size (`learning_rate: auto`); they have no entry in
    `parameters` until `automl.space.defaults.resolve` has been given the model's size.
    targets: target sets of the user, name -> patterns (regular expressions that must match a whole module path).
    measured: constraints that are decided by the last measurement of a trial; `constraints` are before it is trained.
    columns: names of parameters that are columns of a table of curves, not hyperparameters of a trainer.
    task: type of the task if it brings hyperparameters of its own, else empty.
    """

    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Scalar] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    measured: tuple[Constraint, ...] = ()
    enqueue: tuple[Mapping[str, Scalar], ...] = ()
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    auto: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the linear layers of a frozen backbone are held: in 8 bits, or in 4 as normal or floating-point numbers.

    double: the scales of the 4-bit blocks are held in 8 bits themselves. Sources: Dettmers et al. 2022 (LLM.int8());
    Dettmers et al. 2023 (QLoRA), section 3.
    """

    kind: Literal["int8", "nf4", "fp4"]
    double: bool = False

    def __str__(self) -> str:
        return f"{self.kind}{' with double quantisation' * self.double}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Where the backbone comes from: exactly one of hub id, folder, GGUF file, or (package, path inside it).

    quantization: how it is held, None = as it is stored. adapter: folder of one that is merged into it, empty = none.
    """

    kind: Literal["hub", "folder", "gguf", "package", "none"]  # none: a table of curves has no model
    location: str  # hub id, absolute path, or import name of the package
    path: str = ""  # inside the package: a folder, or a .gguf file
    revision: str | None = None
    quantization: Quantization | None = None
    adapter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where the examples come from.

    kind files: `files` maps split names (train, validation, test) to absolute paths (JSONL, CSV, Parquet, text).
    kind folder: `location` is a folder with one sub-folder of text files per label, or of any text files. kind
    package: the same inside an installed package, `path` in it (or a data file there). kind hub: `location` is a data
    set id, `path` its configuration's name. kind mixture: `parts` are such places, each with its share of training.
    columns: our column name (text, label, prompt, response, messages ...) -> theirs. ignore: columns of theirs that are
    left out on purpose.
    """

    kind: Literal["files", "folder", "package", "hub", "mixture"]
    location: str = ""
    path: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    parts: tuple[DataPart, ...] = ()

    @property
    def places(self) -> tuple[DataSettings, ...]:
        """Each place by itself, in the order of the file; no mixture is among them."""
        return tuple(part.data for part in self.parts) or (self,)

    @property
    def shown(self) -> str:
        """Where the rows come from, in words."""
        if self.parts:
            return " + ".join(f"{part.weight:g} {part.data.shown}" for part in self.parts)
        at = "/".join(filter(None, (self.location, self.path)))
        return at or ", ".join(self.files.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPart:
    """One place of a mixture. weight: the share of training that it has, above 0; they add up to 1."""

    data: DataSettings
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTask:
    """A metric of a task of lm-eval.

    task: its name, or a YAML file. metric: what the task calls it, with a filter after a comma where it has several.
    limit: documents, None = all. shots: examples in the prompt, None = as the task says.
    """

    task: str
    metric: str
    limit: int | None = None
    shots: int | None = None
    batch_size: int = 8

    @property
    def run(self) -> HarnessTask:
        """What one evaluation is, whatever is read off its results."""
        return replace(self, metric="")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMetric:
    """A metric of the user's: a function, a program, or a task of lm-eval, of which exactly one is given.

    name: under which its values are kept, `minimize:judge`. python: `package.module:function`. folder: where the space
    file lies, in which the program runs and modules are looked for that are not installed. timeout: seconds of a call.
    """

    name: str
    python: str = ""
    command: tuple[str, ...] = ()
    lm_eval: HarnessTask | None = None
    folder: str = ""
    timeout: float = 60.0

    @property
    def shown(self) -> str:
        """The program as a message shows it: without what may be long or secret among its arguments."""
        return " ".join(self.command[:2])


DATA_RULES = 2
"""Version of the rules by which data is read, split, tokenised and scored. docs/reference/tasks.md lists them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What is learnt, from which data, and how it is judged.

    metrics: measured beside the objective `metric` at a trial's last step.
    own_metrics: those of the user's among them, by name; never taken out of a database.
    format (instruction tasks): alpaca, messages, sharegpt or prompt_response; "auto" reads it off the columns.
    test_share, validation_share: shares of all rows in (0, 1), used where the data brings no such split itself; a
    validation_share of 1 means that all rows judge, and none is trained on.
    seed: fixes the split and the order of the batches.
    max_length: tokens per example, longer ones are cut. max_target_length (seq2seq): of a target, while max_length is
        that of a source; 0: there is no target apart.
    evaluate_rows: a fixed subset of the validation split that every evaluation uses (0 = all of it).
    generate_rows, max_new_tokens: bound for the metrics that need generation.
    bad_rows: what becomes of rows that cannot be used.
    normalize: how answers are compared by exact_match ("" = as they are).
    extract: pattern of the answer in a text, which is compared instead of the text ("" = the text).
    json_schema: of the metric of that name.
    thinking (instruction tasks): what becomes of thoughts that the chat template removes.
    long_texts (completion): what becomes of plain texts above max_length; "" = chunk for .txt files, else cut.
    short_texts (completion, instruction): what becomes of rows to train on that are below max_length.
    own: what the section of a task from another package holds beside all these.
    log (tables of curves): columns on a log scale, None = all; `data.columns` renames the arrays of the file.
    rules: a study keeps the `DATA_RULES` that it began with, so that its rows and scores do not change under it.
    """

    type: str
    data: DataSettings
    metric: str
    metrics: tuple[str, ...] = ()
    own_metrics: Mapping[str, OwnMetric] = field(default_factory=dict)
    test_share: float = 0.2
    validation_share: float = 0.2
    seed: int = 0
    max_length: int = 128
    max_target_length: int = 0
    format: str = "auto"
    evaluate_rows: int = 256
    generate_rows: int = 32
    max_new_tokens: int = 64
    bad_rows: Literal["refuse", "skip"] = "refuse"
    normalize: Literal["", "squad"] = ""
    extract: str = ""
    json_schema: Mapping[str, Any] = field(default_factory=dict)
    thinking: Literal["refuse", "keep", "template"] = "refuse"
    long_texts: Literal["", "cut", "chunk"] = ""
    short_texts: Literal["", "join"] = ""
    log: tuple[str, ...] | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    rules: int = DATA_RULES

    @property
    def measured(self) -> tuple[str, ...]:
        """The objective, and then what is measured beside it."""
        return tuple(dict.fromkeys((self.metric, *self.metrics)))

    @property
    def longest_row(self) -> int:
        """Most tokens of a row that a layer sees at once: a decoder reads the target apart from the source."""
        return max(self.max_length, self.max_target_length)


@dataclass(frozen=True, slots=True)
class Length:
    """How much a full trial sees, whatever its batch size. amount: None = to be chosen from the data."""

    unit: Literal["epochs", "examples", "tokens"]
    amount: float | None

    def __str__(self) -> str:
        return "as many epochs as the data wants" if self.amount is None else f"{self.amount:,.10g} {self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSettings:
    """Price of a device for an hour, and most that may be spent, both in one currency (a code such as EUR)."""

    per_gpu_hour: float
    limit: float
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """What all runs of a search may spend together; None = without end. tokens: of training, without padding."""

    gpu_hours: float | None = None
    tokens: int | None = None
    examples: int | None = None
    cost: CostSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How the space is searched and when the search ends.

    trials: COMPLETE + PRUNED trials.
    steps: optimizer steps of a full trial; with a length, those of one with batches of `step_rows` rows.
    length: what the file says of a trial instead of its steps, None = steps. When the data is known, they follow.
    step_rows: rows of a step by which `steps`, `evaluate_every`, `evaluations` and `max_steps` count then, so that
        trials are judged after as many rows whatever their batches (`automl.space.length`); None = any step counts.
    evaluate_every: the grid on which trials are judged.
    evaluations: (step, rows) of each measurement; empty = all evaluation rows at every multiple of evaluate_every; None
        = to be chosen by `automl.setup.evaluation` when model and data are known.
    max_seconds, max_steps: further budgets (None = none); max_steps counts training steps of all trials.
    budget: what else may not be exceeded (`automl.sweep.meter`); the studies of one file share it.
    keep: adapters that stay on disk.
    importance: measure that of modules while trials train.
    squeeze: auto: measure the winner's adapter at smaller sizes when the search ends; off: do not.
    warm_start: another study of the database, whose best configurations are tried first.
    learn_from: studies of the database whose best configuration is tried first; None = to be looked for, once.
    patience: trials without a better value after which no new one starts (None = no limit).
    also_minimize: the second objective, if there are two.
    checkpoint: the one that a trial is worth: of its best evaluation, or the last.
    early_stopping: a trial ends itself where training on brings nothing; only with the best checkpoint.
    """

    sampler: str = "tpe"
    sampler_options: Mapping[str, Scalar] = field(default_factory=dict)
    pruner: str = "halving"
    pruner_options: Mapping[str, Scalar] = field(default_factory=dict)
    trials: int = 24
    steps: int = 120
    length: Length | None = None
    step_rows: int | None = None
    evaluate_every: int = EVALUATE_EVERY
    evaluations: tuple[tuple[int, int], ...] | None = ()
    seed: int = 0
    max_seconds: float | None = None
    max_steps: int | None = None
    budget: BudgetSettings = BudgetSettings()
    max_failed_trials: int = 10
    keep: int = 3
    importance: bool = True
    squeeze: Literal["auto", "off"] = "auto"
    warm_start: str | None = None
    learn_from: tuple[str, ...] | None = ()
    patience: int | None = None
    also_minimize: Literal["trainable_params", "seconds", "forgetting"] | None = None
    checkpoint: Literal["best", "last"] = "last"
    early_stopping: bool = False

    @property
    def knows_steps(self) -> bool:
        """Whether the steps of a trial are known: they are said, or have followed from the data."""
        return self.length is None or self.step_rows is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Where the trials run.

    executor: ray (workers of Ray Tune), inline (this process) or another by name. workers, slots, threads: None =
    chosen for the machine; slots is the number of trials a worker holds at once. shards: processes, each with a device
    of its own, that hold one trial together. memory: bytes of a device, or on a CPU of a worker, that trials may take;
    None: what is free. output: folder for adapters, slot files and the summary. address: a running Ray cluster, None =
    a private one on this machine.
    """

    executor: str = "ray"
    workers: int | None = None
    slots: int | None = None
    shards: int = 1
    threads: int | None = None
    memory: int | None = None
    precision: Literal["auto", "fp32", "bf16", "bf16h"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = None
    output: Path = Path("automl-output")


GROWTH = (1, 2, 4, 8)
"""Multiples of its seeds after which a verification with a budget is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """What is verified after a search, and whether by itself.

    seeds: trainings of each configuration.
    margin: difference of the metric below which one is not worse than another; None: by the metric.
    budget: seconds of training, all workers together, for which seeds are added until all is decided; None: no seeds
        are added.
    squeeze: smaller adapters to hold against the winner's: auto: a quarter of its rank, trained, and cuts of its
        adapter; all: half of its rank and that of the cut, trained, too; cuts: what costs no training; off: none.
    """

    automatic: bool = True
    seeds: int = 4
    finalists: int = 1
    margin: float | None = None
    budget: float | None = None
    squeeze: Literal["auto", "all", "cuts", "off"] = "auto"

    @property
    def most_seeds(self) -> int:
        """Trainings of a configuration at most, whatever they take."""
        return self.seeds * (1 if self.budget is None else GROWTH[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """A whole space file. `text` is the file verbatim; `sha256` covers what changes a study's meaning.

    keep: the data on which is measured what trials forget, None = it is not. storage_grace_seconds: longest outage of
    the database that is waited out. artifacts: URL to which kept adapters and reports are copied, None = nowhere.

    Budgets, storage, `keep:` and `run:` are left out of `sha256`: a study may be continued with more trials or other
    workers, and be measured on more.
    """

    study: str
    model: ModelSettings
    task: TaskSettings
    space: SearchSpace
    search: SearchSettings
    run: RunSettings
    verify: VerifySettings = VerifySettings()
    keep: TaskSettings | None = None
    storage_url: str
    source: str
    text: str
    sha256: str
    storage_grace_seconds: float = 300.0
    artifacts: str | None = None
