"""The `model:` and `task:` sections: where the backbone and the examples come from, and what is learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from automl.head import Kind
from automl.methods.settings import Setting
from automl.metric import METRICS
from automl.space.entries import TASKS
from automl.space.extraction import extraction_mistake
from automl.space.messages import shown
from automl.space.named import SectionOf
from automl.space.options import TaskOptions
from automl.space.schema_base import Section, Seed, Text, mistake
from automl.space.schema_data import Data, HubId, InnerPath, PackageName, TaskData, exactly_one, exists, folder_of
from automl.space.schema_search import Seconds


def _pattern(value: str) -> str:
    if message := extraction_mistake(value):
        raise mistake("value", message)
    return value


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    from automl.space.json_schema import schema_mistake

    if message := schema_mistake(value):
        raise mistake("section", message)
    return value


def _unless_off(value: object) -> object:
    """None for what is said to be off: it means what leaving it out means, so that a study stays the same."""
    return None if value in ("none", False) else value


class ModelSection(Section):
    """Where the backbone comes from: exactly one of hub, folder, gguf, package."""

    hub: HubId | None = None
    """Id on the Hugging Face hub, from the local cache unless downloads are allowed."""
    folder: Text | None = None
    """Folder with config.json, safetensors and tokenizer, relative to this file."""
    gguf: Text | None = None
    """A .gguf file, relative to this file; converted once."""
    package: PackageName | None = None
    """Import name of an installed Python package that contains the model."""
    path: InnerPath | None = None
    """Inside the package: a folder, or a .gguf file."""
    revision: Text | None = None
    """Branch, tag or commit on the hub."""
    quantization: Annotated[Literal["none", "int8", "nf4", "fp4"], AfterValidator(_unless_off)] | None = None
    """Hold the frozen linear layers in 8 or 4 bits (QLoRA); needs the extra quant."""
    double_quant: Annotated[bool, AfterValidator(_unless_off)] | None = None
    """Hold the scales of the 4-bit blocks in 8 bits themselves."""
    adapter: Text | None = None
    """Folder of a trained adapter, relative to this file, that is merged into the model before anything is trained."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        exactly_one(self, ("hub", "folder", "gguf", "package"))
        if self.path is not None and self.package is None:
            raise mistake("section", "path belongs to package; give the whole path as folder or gguf")
        if self.revision is not None and self.hub is None:
            raise mistake("section", "revision belongs to hub; remove it")
        if self.double_quant and self.quantization not in ("nf4", "fp4"):
            raise mistake("section", "double_quant belongs to quantization nf4 or fp4; remove it")
        return self


def _widen_model(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str) or not value:
        return value
    if value.endswith(".gguf"):
        return {"gguf": value}
    if value.startswith((".", "/", "~", "\\")) or exists(value, folder_of(info)):
        return {"folder": value}
    return {"hub": value}


Model = Annotated[ModelSection, BeforeValidator(_widen_model, json_schema_input_type=Text | ModelSection)]


class SplitSection(Section):
    """Shares of all rows that are set aside where the data brings no such split itself."""

    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share that the search never reads; only verification does."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share on which trials are measured."""

    @model_validator(mode="after")
    def _leave_some(self) -> SplitSection:
        if self.test + self.validation >= 1:
            raise mistake("section", "test and validation together must be below 1, to leave rows for training")
        return self


def _list_metrics(schema: dict[str, Any]) -> None:
    schema["enum"] = list(METRICS)


MetricName = Annotated[str, Field(json_schema_extra=_list_metrics)]


def _arguments(value: list[str]) -> list[str]:
    if not value or any("\0" in each for each in value) or not value[0].strip():
        raise mistake("section", "must be a list of a program and its arguments, such as [python, judge.py]")
    return value


def _function(value: str) -> str:
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value, re.ASCII):
        return value
    raise mistake("value", "is not a function in a module, such as 'my_pkg.metrics:score'")


def _label(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,39}", value, re.ASCII):
        return value
    raise mistake("value", "is not a name of letters, digits, '_', '.' and '-', at most 40")


class HarnessSection(Section):
    """A task of lm-eval, and which of its metrics."""

    task: Text
    """Its name, or a YAML file with one, relative to this file."""
    metric: Annotated[Text, Field(max_length=200)]
    """One of the task's, such as acc; with a filter where there are several: 'exact_match,strict-match'."""
    limit: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Documents that are looked at, the first ones; left out: all."""
    shots: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Examples in each prompt; left out: what the task says."""
    batch_size: Annotated[int, Field(ge=1, le=10_000, exclude=True)] = 8
    """Texts in one forward pass."""


class OwnMetricSection(Section):
    """A metric of your own: exactly one of python, command and lm_eval."""

    python: Annotated[Text, AfterValidator(_function)] | None = None
    """A function of (responses, predictions) in an installed package, or in a module beside this file."""
    command: Annotated[list[Text], Field(max_length=100), AfterValidator(_arguments)] | None = None
    """A program and its arguments: gets rows as JSON lines, answers a number. Runs in the folder of this file."""
    lm_eval: HarnessSection | None = None
    """A task of lm-eval (the extra lm-eval), which gets the model itself."""
    direction: Literal["minimize", "maximize"]
    """Which end is the better one."""
    name: Annotated[Text, AfterValidator(_label)] | None = None
    """What it is called in tables; default: the function's name, or that of the script or program."""
    timeout: Annotated[Seconds, Field(exclude=True)] = 60.0
    """How long a call of the command may take."""

    @model_validator(mode="after")
    def _one_of_two(self) -> OwnMetricSection:
        exactly_one(self, ("python", "command", "lm_eval"))
        if self.command is None and "timeout" in self.model_fields_set:
            raise mistake("section", "timeout belongs to command; nothing else can be stopped")
        return self

    @property
    def label(self) -> str:
        """Name under which its values are kept; it says the direction, for whoever has the database alone."""
        return f"{self.direction}:{self.name or self._default_name()}"

    def _default_name(self) -> str:
        if self.python is not None:
            return self.python.rpartition(":")[2].rpartition(".")[2][:40]
        if self.lm_eval is not None:
            return _word(f"{Path(self.lm_eval.task).stem}-{self.lm_eval.metric}")
        command = self.command or []
        script = next((each for each in command[1:] if Path(each).suffix in (".py", ".sh")), command[0])
        return _word(Path(script).stem)


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII).lstrip("_.-")[:40] or "command"


def metric_name(given: str | OwnMetricSection) -> str:
    """The name of a metric in a space file."""
    return given if isinstance(given, str) else given.label


class _NamedOrOwn:
    """Annotates the name of a metric, or a section that says what it is."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(_as_written)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        own = handler(OwnMetricSection.__pydantic_core_schema__)
        return {"anyOf": [{"type": "string", "enum": list(METRICS)}, own]}

    def _read(self, value: object) -> object:
        if isinstance(value, Mapping):
            return OwnMetricSection.model_validate({k: v for k, v in value.items() if v is not None}, strict=True)
        if isinstance(value, str):
            return value
        raise mistake(
            "section", f"{shown(value)} is not the name of a metric, nor a mapping with python, command or lm_eval"
        )


def _as_written(value: str | OwnMetricSection) -> object:
    return value if isinstance(value, str) else value.model_dump(exclude_none=True)


MetricEntry = Annotated[str | OwnMetricSection, _NamedOrOwn()]


class TaskSection(TaskOptions):
    """What every task that trains is told: where its rows come from, how they are split, and what is measured."""

    data: TaskData
    """Where the examples come from; a list of parts with weights is a mixture."""
    metric: MetricEntry | None = None
    """The objective: a name, from which direction and bounds follow, or one of your own."""
    # No part of what a study means: no trial is trained or judged otherwise.
    metrics: Annotated[list[MetricEntry], Field(default_factory=list, max_length=20, exclude=True)]
    """Others that are measured when a trial has made its last step, and kept beside the objective."""
    split: SplitSection = SplitSection()
    seed: Seed = 0
    """Fixes the split and the order of the batches."""
    evaluate_rows: Annotated[int, Field(ge=0, le=10_000_000)] = 256
    """Rows of the validation split that each evaluation uses; 0 = all."""
    bad_rows: Annotated[Literal["refuse", "skip"], Field(exclude=True)] = "refuse"
    """Rows that cannot be used: refuse the data, or skip them; either way they are counted and named."""


CLASS_WEIGHTS = Setting(
    name="class_weights",
    default="none",
    meaning="weigh rows alike (none), or more the rarer their class is in training (balanced)",
    choices=("none", "balanced"),
    tried=("none", "balanced"),
)


class ClassificationTask(TaskSection):
    """One label per text, or per pair of texts."""

    type: Literal["classification"]

    implementation: ClassVar[str] = "automl.tasks.classification:Classification"
    head: ClassVar[Kind | Literal[""]] = "classification"
    default_metric: ClassVar[str] = "accuracy"
    settings: ClassVar[tuple[Setting, ...]] = (CLASS_WEIGHTS,)


class TextTask(TaskSection):
    """What tasks are told whose models write text."""

    generate_rows: Annotated[int, Field(ge=1, le=100_000)] = 32
    """Rows used by the metrics that need generation."""
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] = 64
    """Length limit of a generated text."""
    normalize: Literal["squad"] | None = None
    """exact_match as in SQuAD: without case, punctuation and English articles."""
    extract: Annotated[Text, AfterValidator(_pattern)] | None = None
    """Regular expression that takes the answer out of both texts before they are compared: its group, or all of it."""
    json_schema: Annotated[dict[str, Any], AfterValidator(_schema)] | None = None
    """What the metric json_schema holds answers against."""

    @model_validator(mode="after")
    def _schema_is_used(self) -> TextTask:
        is_named = "json_schema" in (self.metric, *self.metrics)
        if is_named and self.json_schema is None:
            raise mistake("section", "the metric json_schema needs the schema: json_schema: {type: object, ...}")
        if self.json_schema is not None and not is_named:
            raise mistake(
                "section", "json_schema is used by the metric of that name alone; name it in metric or metrics"
            )
        return self


ShortTexts = Annotated[Literal["join", "none"], AfterValidator(_unless_off)]


class CompletionTask(TextTask):
    """Continue a text."""

    type: Literal["completion"]
    long_texts: Literal["cut", "chunk"] | None = None
    """Plain texts above max_length: cut off the rest, or make it further rows; left out: chunk for .txt, else cut."""
    short_texts: ShortTexts | None = None
    """Rows to train on below max_length: join several into a block in which none sees another, or none."""

    implementation: ClassVar[str] = "automl.tasks.completion:Completion"


class InstructionTask(TextTask):
    """Answer an instruction; the loss counts the answer's tokens only."""

    type: Literal["instruction"]
    format: Literal["auto", "alpaca", "messages", "sharegpt", "prompt_response"] = "auto"
    """Shape of a row; auto reads it off the columns."""
    short_texts: ShortTexts | None = None
    """Rows to train on below max_length: join several into a block in which none sees another, or none."""
    thinking: Annotated[Literal["refuse", "keep", "template"], Field(exclude=True)] = "refuse"
    """Thoughts (<think> ... </think>) that the chat template removes: refuse the data, keep them, or let it do so."""

    implementation: ClassVar[str] = "automl.tasks.instruction:Instruction"


class KeepSection(Section):
    """Other data, which no trial learns: how much worse a trial is on it than the untuned model is what it forgets."""

    data: Data
    """Where the texts come from: columns prompt and response, text alone, or what type says."""
    metric: MetricName = "loss"
    """Measured for the untuned model once, and for every trial at its last step."""
    type: Literal["completion", "instruction"] = "completion"
    """How rows are read: as of a task of this type."""
    rows: Annotated[int, Field(ge=0, le=10_000_000)] = 256
    """Rows that are measured on, always the same; 0 = all."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Rows that cannot be used: refuse the data, or skip them; either way they are counted and named."""


def _widen_keep(value: object) -> object:
    return {"data": value} if isinstance(value, str) else value


Keep = Annotated[KeepSection, BeforeValidator(_widen_keep, json_schema_input_type=Text | KeepSection)]


class TableArrays(Section):
    """Our array name -> the name in the file, where it differs."""

    names: Text | None = None
    """Names of the hyperparameters, d of them."""
    configurations: Text | None = None
    """Their values, one row for each recorded run: N x d."""
    curves: Text | None = None
    """The metric at each evaluation of each run: N x E; the objective."""


class TableTask(TaskOptions):
    """Replay recorded learning curves instead of training; the space is the table's columns. Needs no model."""

    type: Literal["table"]
    file: Text
    """An .npz file of numpy, relative to this file."""
    arrays: TableArrays = TableArrays()
    metric: MetricName | None = None
    """What the curves hold: any metric; loss if left out."""
    log: list[Text] | Literal["all"] = "all"
    """Columns on a log scale, or all."""


AnyTask = Annotated[TaskOptions, SectionOf(TASKS, "type", lambda section: section)]
