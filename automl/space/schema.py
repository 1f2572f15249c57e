"""What a user may write in space.yaml, as pydantic classes: the source of the JSON Schema.

Shorthands (`model: ./folder`, `sampler: tpe`) are widened here. What needs two sections at once is checked in
`automl.space.checks`. These classes never leave `automl.space`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from automl.space.entries import EXECUTORS
from automl.space.named import NameIn
from automl.space.schema_base import Section, Text, mistake
from automl.space.schema_search import SearchSection, Seconds
from automl.space.schema_space import Assignment, FixedSection, SpaceSection
from automl.space.schema_task import AnyTask, Keep, Model
from automl.space.sizes import bytes_of


def _memory(value: object) -> int:
    try:
        return bytes_of(str(value))  # of true or a list, no size either
    except ValueError as error:
        raise mistake("value", str(error)) from None


Memory = Annotated[int, BeforeValidator(_memory), WithJsonSchema({"type": ["number", "string"]})]
"""Bytes, written as 24GB or 40000MB; a number alone is of GB."""


class RunSection(Section):
    """Where the trials run."""

    executor: Annotated[str, NameIn(EXECUTORS)] = "ray"
    """ray: worker processes; inline: this process."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Worker processes; one per device if left out."""
    slots: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Trials that a worker holds at once."""
    shards: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that hold one trial together, each with a device of its own: for models larger than one device."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of a worker."""
    memory: Memory | None = None
    """What trials may take of a device, or on a CPU in a worker, such as 24GB; what is free if left out."""
    precision: Literal["auto", "fp32", "bf16", "bf16h"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """A running Ray cluster; a private one on this machine if left out."""
    output: Text = "automl-output"
    """Folder for adapters and the summary, relative to where the command is started."""


_Smaller = Annotated[
    Literal["auto", "all", "cuts", "off"],
    BeforeValidator(lambda given: {True: "auto", False: "off"}[given] if isinstance(given, bool) else given),
    WithJsonSchema({"enum": ["auto", "all", "cuts", "off", True, False]}),
]
"""An unquoted off is refused as ambiguous where the file is read, so that false must do."""


class VerifySection(Section):
    """What is trained again on fresh seeds after a search, and scored on the test rows."""

    automatic: bool = True
    """Verify as soon as a search is complete; automl verify does it at any time."""
    seeds: Annotated[int, Field(ge=3, le=1000)] = 4
    """Trainings of each configuration; a suggested rank pattern is judged from 8 on."""
    finalists: Annotated[int, Field(ge=1, le=20)] = 1
    """Best trials that are verified, beside the default configuration and the smallest one within noise."""
    margin: Annotated[float, Field(gt=0)] | None = None
    """Loss of the metric below which a smaller configuration is not worse; if left out, 1 % of the metric's range, 2 %
    of a loss."""
    budget: Seconds | None = None
    """Training time of all workers together, in seconds or as 20m, 2h: so long seeds are added, up to eight times as
    many, until every comparison is decided."""
    squeeze: _Smaller = "auto"
    """Smaller adapters that the winner is held against: a quarter of its rank, trained at a rate of its own, and cuts
    of its adapter, which are not trained; all: half of its rank, and the cut's, too; false: none."""


class StorageSection(Section):
    """Where results are kept."""

    url: Text | None = None
    """Database URL without a password. If left out: the environment variable AUTOML_DB_URL, else
    sqlite:///automl.db in the folder where the command is started."""
    grace: Seconds = 300.0
    """Longest outage of the database that is waited out, in seconds or as 5m, 1h."""
    artifacts: Text | None = None
    """URL such as s3://bucket/prefix, without credentials, where kept adapters and reports are copied to."""


StudyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]
TargetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,49}$")]
Patterns = Annotated[list[Text], Field(min_length=1, max_length=50)]


def _widen_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


OneOrMorePatterns = Annotated[Patterns, BeforeValidator(_widen_list, json_schema_input_type=Text | Patterns)]


def _no_truth(value: object) -> object:
    if isinstance(value, bool):  # True == 1 in Python, and so in Literal[1]
        raise mistake("value", "is not 1")
    return value


class SpaceFile(Section):
    """A hyperparameter search over LoRA configurations, for `automl search`."""

    version: Annotated[Literal[1], BeforeValidator(_no_truth)]
    """Version of this format."""
    study: StudyName
    """Name of the study in the database; running the same file again continues it."""
    model: Model | None = None
    """The backbone: a hub id, a folder, a .gguf file, or a mapping. Needed unless the task is a table."""
    task: AnyTask
    """What is learnt, from which data, and how it is judged."""
    keep: Keep | None = None
    """Other data on which is measured what trials forget."""
    targets: Annotated[dict[TargetName, OneOrMorePatterns], Field(default_factory=dict, max_length=50)]
    """Own target sets: name -> regular expressions that match whole module paths."""
    space: SpaceSection | Literal["auto"] = "auto"
    """What may vary; left out, or auto: the usual parameters with ranges by the model's size."""
    fixed: FixedSection = FixedSection()
    """What does not vary."""
    enqueue: Annotated[list[Assignment], Field(default_factory=list, max_length=1000)]
    """Known-good configurations, tried first."""
    constraints: Annotated[list[Text], Field(default_factory=list, max_length=50)]
    """Conditions such as 'trainable_params <= 500_000'."""
    search: SearchSection = SearchSection()
    verify: VerifySection = VerifySection()
    run: RunSection = RunSection()
    storage: StorageSection = StorageSection()
