"""What all trials of a device share: the frozen backbone, the tokenised rows, and how they are evaluated."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from automl import durable
from automl.lanes import lane_of
from automl.lora import Hyperparameters
from automl.methods.eva import Directions, know_inputs
from automl.models.backbone import BackboneRef, Dtype, load_backbone, load_tokenizer
from automl.models.headed import with_head
from automl.models.inventory import resolve_targets
from automl.outcomes import Outcomes
from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Batch, Prepared, Row, Task, Untuned
from automl.tasks.batches import evaluation_batches, evaluation_rows
from automl.tasks.reference import untouched
from automl.training.inputs import directions_of_inputs, file_name, kept_directions, rows_to_read
from automl.training.joined import check_joined
from automl.training.kept import Keep, KeptRows

logger = logging.getLogger(__name__)

Split = Literal["validation", "test"]

EVALUATION_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Tokens, padding included, of one forward pass of an evaluation, by type of device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """All a worker needs to train trials of a sweep; picklable, and free of credentials.

    targets: the user's target sets.
    output: folder of the study (slot files, adapters).
    precision: fp32, bf16 or (packed only) bf16h, one for the whole study.
    device: cpu, cuda, cuda:1 … or auto.
    threads: torch's, None = leave as it is.
    capacity: most trials resident at once.
    packed: they are trained together, not one after the other.
    judged_on: rows that trials are measured on; a search is never given the test rows.
    largest, tokens: the costliest trial there may be, and the tokens of its largest batch.
    whole_batches: a loss may compare the rows of a batch, which is then not computed in parts.
    choices: the target sets that trials may have.
    workers: how many there are.
    memory: bytes that each may take, None: what is free.
    importance: measure on the way how much the loss depends on each module's update.
    shards: processes that hold one trial together.
    input_rank: the largest rank of trials that start from inputs of the layers; 0: there are none.
    proofs: folder in which is remembered what can be packed; empty: it is found out anew.
    keep: what trials are measured on at their last step besides.
    beside: of further lanes (`automl.lanes`), whose trials are trained on the same backbone; what belongs to task and
    study is taken from these, everything else from the first.

    From largest, tokens, choices and workers a packed worker finds out how it trains, and whether it has the
    memory for `capacity` trials.
    """

    backbone: BackboneRef
    task: TaskSettings
    prepared: Prepared
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    output: str
    precision: str = "fp32"
    device: str = "auto"
    threads: int | None = None
    capacity: int = 1
    packed: bool = False
    judged_on: Split = "validation"
    largest: Hyperparameters | None = None
    choices: tuple[str, ...] = ()
    tokens: int = 0
    whole_batches: bool = False
    workers: int = 1
    memory: int | None = None
    importance: bool = True
    shards: int = 1
    proofs: str = ""
    keep: Keep | None = None
    input_rank: int = 0
    beside: tuple[HostSettings, ...] = ()

    @property
    def lanes(self) -> tuple[HostSettings, ...]:
        """The settings of every lane."""
        return (self, *self.beside)

    def of(self, trial: int) -> HostSettings:
        """The settings of the lane that a trial is in."""
        return self.lanes[lane_of(trial)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The frozen backbone on its device with the data that trials are trained on and judged by.

    evaluation_rows: the fixed part of the validation split that every evaluation uses, or in a verification all test
    rows. evaluation_tokens: in one forward pass, padding included. importance: as in the settings. validation_rows: in
    a verification, what a search is judged on. kept: other rows, on which forgetting is measured. The model carries at
    most one adapter at a time.
    """

    model: nn.Module
    tokenizer: Any
    task: Task
    train_rows: Sequence[Row]
    evaluation_rows: Sequence[Row]
    device: torch.device
    precision: str = "fp32"
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    evaluation_tokens: int = EVALUATION_TOKENS["cpu"]
    importance: bool = False
    validation_rows: Sequence[Row] = ()
    kept: KeptRows | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 autocast if that is the precision; otherwise it does nothing."""
        return _autocast(self.device, self.precision)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The rows padded and on the device."""
        return self._on_device(self.task.collate(rows, self.tokenizer.pad_token_id))

    def evaluate(self, model: nn.Module, rows: Sequence[Row], max_tokens: int) -> dict[str, float]:
        """All metrics of the task over `rows`, without dropout; the model is left in eval mode."""
        return self.evaluate_by_row(model, rows, max_tokens)[0]

    def evaluate_by_row(
        self, model: nn.Module, rows: Sequence[Row], max_tokens: int, *, task: Task | None = None
    ) -> tuple[dict[str, float], Outcomes | None]:
        """All metrics, as `evaluate`, and what the objective is made of, row by row, the longest rows first.

        task: whose rows they are, if not the study's.
        """
        task = task or self.task
        batches = self.batches(rows, max_tokens, task=task)
        model.eval()
        with torch.no_grad(), self.autocast():
            return task.evaluate_by_row(model, batches, self.tokenizer)

    def batches(
        self, rows: Sequence[Row], max_tokens: int | None = None, *, task: Task | None = None
    ) -> Iterator[Batch]:
        """The rows in padded batches on the device, the longest first. max_tokens: of one, None: as in evaluations.

        task: as for `evaluate_by_row`.
        """
        most = max_tokens or self.evaluation_tokens
        pad_id = self.tokenizer.pad_token_id
        found = evaluation_batches(task or self.task, rows, range(len(rows)), pad_id=pad_id, max_tokens=most)
        return map(self._on_device, found)

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


def load_runtimes(
    settings: HostSettings, *, is_judging: Callable[[HostSettings], bool] = lambda each: True
) -> list[Runtime]:
    """The runtime of every lane: one backbone for all, under heads of their own where labels differ.

    is_judging: as for `load_runtime`, by the settings of a lane.
    """
    first = load_runtime(settings, is_judging=is_judging(settings))
    return [
        first,
        *(
            load_runtime(each, _headed(each, first.model), is_judging=is_judging(each), is_backbone=True)
            for each in settings.beside
        ),
    ]


def _headed(settings: HostSettings, model: nn.Module) -> nn.Module:
    head = make_task(settings.task).head(settings.prepared)
    return with_head(model, settings.backbone, head.kind, head.labels)


def load_runtime(
    settings: HostSettings, model: nn.Module | None = None, *, is_judging: bool = True, is_backbone: bool = False
) -> Runtime:
    """Load backbone, tokenizer and rows once, and set torch up for repeatable results on this device.

    model: takes the place of the backbone, which is then not read. is_judging: read the rows of evaluations; without
    it there are none. is_backbone: the model is the backbone, loaded before.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    task, tokenizer = make_task(settings.task).on(settings.prepared), load_tokenizer(settings.backbone)
    frozen = (model or load_model(settings)).to(device)
    is_other = model is not None and not is_backbone
    rows = _reader(task, settings, None if is_other else frozen, device, int(tokenizer.pad_token_id))
    runtime = Runtime(
        model=frozen,
        tokenizer=tokenizer,
        task=task,
        train_rows=rows("train"),
        evaluation_rows=_evaluation_rows(rows, settings) if is_judging else (),
        device=device,
        precision=settings.precision,
        targets=settings.targets,
        evaluation_tokens=EVALUATION_TOKENS.get(device.type, EVALUATION_TOKENS["cpu"]),
        importance=settings.importance,
        validation_rows=_validation_rows(rows, settings) if is_judging and settings.judged_on == "test" else (),
        kept=_kept(settings.keep, settings, device) if settings.keep is not None else None,
    )
    if settings.task.short_texts and not is_other:
        check_joined(frozen, runtime.train_rows, int(tokenizer.pad_token_id))
    if settings.input_rank and model is None:
        know_inputs(frozen, _input_directions(settings, runtime))
    return runtime


def referred_to(
    runtime: Runtime,
    settings: HostSettings,
    model: Callable[[], nn.Module],
    around: Callable[[], AbstractContextManager[object]],
) -> Runtime:
    """The runtime with rows that are compared with what this model says, in the precision of the settings.

    model: the untuned one as it computes inside of `around`. It is asked when a row of training is first drawn, and at
    once for rows of evaluations.
    """
    untuned = Untuned(
        model=model,
        device=runtime.device,
        autocast=around,
        pad_id=int(runtime.tokenizer.pad_token_id),
        folder=_reference_folder(settings, runtime.device, settings.prepared),
    )
    rows = _referred(runtime.task, settings, untuned)
    return replace(
        runtime,
        train_rows=rows("train"),
        evaluation_rows=_evaluation_rows(rows, settings),
        validation_rows=_validation_rows(rows, settings) if settings.judged_on == "test" else (),
    )


def _kept(keep: Keep, settings: HostSettings, device: torch.device) -> KeptRows:
    task = make_task(keep.task)
    every = task.rows(keep.prepared, "validation")
    rows = [every[index] for index in evaluation_rows(keep.task.seed, len(every), keep.task.evaluate_rows)]
    folder = _reference_folder(settings, device, keep.prepared)
    return KeptRows(task=task, rows=rows, file=folder / f"{keep.task.metric}-{len(rows)}.json")


def load_model(settings: HostSettings) -> nn.Module:
    """The frozen backbone with the head of the task, on the CPU, read from disk."""
    head = make_task(settings.task).head(settings.prepared)
    return load_backbone(settings.backbone, head.kind, head.labels, stored_dtype(settings.precision))


def stored_dtype(precision: str) -> Dtype:
    """Type in which a backbone is held for training in this precision: bf16h converts what it needs itself."""
    return "bf16" if precision == "bf16" else "fp32"


def choose_device(name: str) -> torch.device:
    """The named device; `auto` is the GPU if torch sees one. On a GPU, kernels that vary from run to run are off."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return device


def _input_directions(settings: HostSettings, runtime: Runtime) -> Callable[[int], Directions]:
    """Finds directions of the layers that trials may adapt, for the largest of their ranks or a larger one."""
    model, seed = untouched(runtime.model), settings.task.seed
    targets = settings.choices or ("all-linear",)
    found = (layer.path for name in targets for layer in resolve_targets(model, name, settings.targets))
    layers = sorted(set(found))

    def make(count: int) -> Directions:
        rows = list(rows_to_read(runtime.train_rows, seed))
        logger.info("init eva: the inputs of %d layers are read from %d rows, once", len(layers), len(rows))
        with runtime.autocast():
            return directions_of_inputs(
                model, layers, runtime.batches(rows), lambda batch: runtime.task.loss(model, batch), count
            )

    @cache
    def find(rank: int) -> Directions:
        count = max(rank, settings.input_rank)
        file = _reference_folder(settings, runtime.device, settings.prepared) / file_name(layers, count, seed)
        return kept_directions(file, lambda: make(count))

    return find


Rows = Callable[[Literal["train", "validation", "test"]], Sequence[Row]]
"""Reads the rows of a split as trials get them."""


def _reader(task: Task, settings: HostSettings, frozen: nn.Module | None, device: torch.device, pad_id: int) -> Rows:
    """frozen: the backbone as it was loaded; None: another model is in its place, and it is read if it is needed."""
    if not task.refers:
        return lambda split: task.rows(settings.prepared, split)
    if settings.precision == "bf16h":  # here the model computes in float32, whatever a pack makes of it
        settings = replace(settings, precision="fp32")
    untuned = Untuned(
        model=_model_of(settings, device) if frozen is None else partial(_same, untouched(frozen)),
        device=device,
        autocast=partial(_autocast, device, settings.precision),
        pad_id=pad_id,
        folder=_reference_folder(settings, device, settings.prepared),
    )
    return _referred(task, settings, untuned)


def _referred(task: Task, settings: HostSettings, untuned: Untuned) -> Rows:
    return lambda split: task.referred(task.rows(settings.prepared, split), split, untuned)


def _model_of(settings: HostSettings, device: torch.device) -> Callable[[], nn.Module]:
    return lru_cache(maxsize=1)(lambda: load_model(settings).to(device))


def _same(model: nn.Module) -> nn.Module:
    return model


def _reference_folder(settings: HostSettings, device: torch.device, prepared: Prepared) -> Path:
    """Where what the untuned model makes of data is kept: beside the data, by model, precision and device."""
    backbone = settings.backbone
    about = {
        "model": backbone.fingerprint,
        "quantization": str(backbone.quantization),
        "precision": settings.precision,
        "device": device.type,
    }
    name = hashlib.sha256(durable.canonical(about)).hexdigest()[:16]
    return prepared.path.parent / f"{prepared.fingerprint}.reference" / name


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _evaluation_rows(rows: Rows, settings: HostSettings) -> list[Row]:
    """The fixed subset of the validation rows, or all test rows, read once: every evaluation goes through all of it."""
    if settings.judged_on == "test":
        return list(rows("test"))
    return _validation_rows(rows, settings)


def _validation_rows(given: Rows, settings: HostSettings) -> list[Row]:
    rows = given("validation")
    return [rows[index] for index in evaluation_rows(settings.task.seed, len(rows), settings.task.evaluate_rows)]
