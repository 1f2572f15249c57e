"""The sets and the space of `lora_curves`, and how packs of configurations become curves.

Every training is one of the product's packed trainer, in the precision that a search would choose here. All see the
same examples in the same order whatever their batch size, and are measured after the same shares of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.quasirandom import SobolEngine

from automl.packed.measure import Evaluator
from automl.packed.trainer import PackedTrainer
from automl.space.assemble import assemble
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchSpace
from automl.trial import Measurement, Scalar, StopReason, TrialFailure, TrialSpec
from benchmarks.curve_file import TARGETS, Curve, Floats, Key, as_numbers
from benchmarks.squeeze_world import SMOLLM2, Lab, TextSet, open_lab

SEED = 15
"""Seed of the scrambled sequence that the configurations come from."""

SPLITS = ("train", "validation", "test")
_REPEAT = 100_000
_OF_SQUEEZES = ("steps", "batch", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSet:
    """What is trained on one public set.

    examples: that a training sees; every evaluation falls between two batches of every size. rates: the range of the
    learning rate. longest: characters of a row, longer ones are left out; 0 = none is. slots: trainings in a pack.
    """

    text_set: TextSet
    examples: int = 1536
    evaluations: int = 12
    batches: tuple[int, ...] = (4, 8, 16, 32, 64)
    rates: tuple[float, float] = (1e-4, 1e-1)
    longest: int = 0
    slots: int = 8

    @property
    def name(self) -> str:
        """That of the set."""
        return self.text_set.name

    @property
    def metrics(self) -> list[str]:
        """What is kept of each evaluation, the objective first."""
        return list(dict.fromkeys((self.text_set.metric, "loss")))

    @property
    def space(self) -> SearchSpace:
        """What `automl init` searches, wider: ranks from 1, all target sets, three decades of rates, batch sizes."""
        low, high = self.rates
        return SearchSpace(
            parameters=(
                IntParameter(name="rank", low=1, high=64, log=True),
                CategoricalParameter(name="alpha_ratio", choices=(0.5, 1.0, 2.0, 4.0)),
                CategoricalParameter(name="dropout", choices=(0.0, 0.05, 0.1)),
                CategoricalParameter(name="target", choices=TARGETS),
                FloatParameter(name="learning_rate", low=low, high=high, log=True),
                CategoricalParameter(name="batch_size", choices=self.batches),
            )
        )

    def params(self, key: Key) -> dict[str, Scalar]:
        """The point of the space that a training is of."""
        return points(self.space, key.configuration + 1)[-1]

    def configuration(self, key: Key) -> dict[str, float]:
        """A configuration as the columns of the file."""
        params = self.params(key)
        return dict(as_numbers(params, assemble(self.space, params).alpha))

    def plan(self, rows: Path, *, model: str, precision: str) -> dict[str, Any]:
        """All that a curve depends on beside its key, and no place where anything lies on this machine.

        rows: folder of the files that are used. model: fingerprint of the backbone.
        """
        given = asdict(self)
        given["text_set"]["model"] = model
        del given["slots"]
        for name in _OF_SQUEEZES:
            del given["text_set"][name]
        given["rows"] = {split: hashlib.sha256((rows / f"{split}.jsonl").read_bytes()).hexdigest() for split in SPLITS}
        given["space"] = [asdict(parameter) for parameter in self.space.parameters]
        found: dict[str, Any] = json.loads(json.dumps({**given, "sobol": SEED, "precision": precision}))
        return found


SETS = {
    each.name: each
    for each in (
        CurveSet(text_set=TextSet(name="trec", max_length=32, train=768, validation=200, test=256)),
        CurveSet(
            text_set=TextSet(name="banking77", max_length=32, train=1152, validation=256, test=256), examples=2304
        ),
        CurveSet(text_set=TextSet(name="sst2", max_length=40, train=768, validation=200, test=256), examples=768),
        CurveSet(
            text_set=TextSet(
                name="e2e_nlg",
                kind="instruction",
                model=SMOLLM2,
                metric="loss",
                max_length=96,
                train=128,
                validation=32,
                test=32,
            ),
            examples=256,
            evaluations=8,
            batches=(4, 8, 16, 32),
            rates=(2e-5, 2e-2),
            longest=150,
            slots=4,
        ),
        CurveSet(text_set=TextSet(name="agnews_10k", max_length=40, train=768, validation=200, test=200), examples=768),
        CurveSet(text_set=TextSet(name="rte", max_length=64, train=768, validation=200, test=200), examples=768),
    )
}
"""In the order of their use: 6, 77 and 2 classes, a model that writes, 4 classes, pairs."""


def points(space: SearchSpace, count: int) -> list[dict[str, Scalar]]:
    """The first points of a scrambled Sobol sequence over the space; as many of a longer one are the same."""
    shares = SobolEngine(len(space.parameters), scramble=True, seed=SEED).draw(count).tolist()
    return [
        {parameter.name: _value(parameter, share) for parameter, share in zip(space.parameters, point, strict=True)}
        for point in shares
    ]


def _value(parameter: Parameter, share: float) -> Scalar:
    """The value below which this share of the range lies; whole numbers have half a unit around them."""
    match parameter:
        case CategoricalParameter(choices=choices):
            return choices[min(int(share * len(choices)), len(choices) - 1)]
        case IntParameter(low=low, high=high):
            return min(max(round(_between(low - 0.5, high + 0.5, share)), low), high)
        case FloatParameter(low=low, high=high):
            return _between(low, high, share)


def _between(low: float, high: float, share: float) -> float:
    """On a log scale, as all ranges here are."""
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


def open_set(curve_set: CurveSet, data: Path, work: Path, *, precision: str) -> Lab:
    """Its rows and its model, as `open_lab` reads them. Raises what that does."""
    place = data / curve_set.name
    if curve_set.longest:
        place = _short_rows(place, work / "short", curve_set.longest)
    return open_lab(curve_set.text_set, place, work, precision=precision, threads=1)


def _short_rows(data: Path, folder: Path, longest: int) -> Path:
    """A copy of the set without rows whose values have more characters."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in data.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        short = [line for line in lines if sum(map(len, map(str, json.loads(line).values()))) <= longest]
        (folder / path.name).write_text("\n".join(short) + "\n", encoding="utf-8")
    return folder


def train(
    curve_set: CurveSet,
    lab: Lab,
    keys: Iterable[Key],
    *,
    tick: Callable[[], None],
    measured: Callable[[int], None],
) -> Iterator[tuple[Key, Curve]]:
    """Train these configurations; yields each curve when it is whole.

    keys: asked for when a place in the pack is free. tick: called before each micro-step. measured: told of the
    examples that an evaluation completes. Raises RuntimeError if a training fails, other than by diverging.
    """
    workload = lab.workload(lab.runtime.evaluation_rows)
    drafts: dict[int, _Draft] = {}

    def specs() -> Iterator[TrialSpec]:
        for key in keys:
            draft = drafts[_number(key)] = _Draft(curve_set, key)
            yield draft.spec

    with closing(PackedTrainer(lab.runtime.model, workload, precision=lab.runtime.precision)) as trainer:
        on_test = Evaluator(trainer.backbone, lab.workload(lab.test_rows))
        for event in trainer.train(specs(), slots=curve_set.slots, before_turn=tick):
            draft = drafts[event.trial]
            before = draft.done
            if isinstance(event, Measurement):
                member = trainer.members[event.trial]
                draft.add(event, on_test.metrics(member.adapter, member.evaluation_tokens))
            else:
                draft.fail(event)
            measured((draft.done - before) * curve_set.examples // curve_set.evaluations)
            if draft.done == curve_set.evaluations:
                yield draft.key, drafts.pop(event.trial).curve()


def _number(key: Key) -> int:
    return key.repeat * _REPEAT + key.configuration


@dataclass(slots=True)
class _Draft:
    """A curve that is being measured. done: evaluations. clock: processor and wall time at the last one."""

    curve_set: CurveSet
    key: Key
    done: int = 0
    rows: list[tuple[Floats, Floats, float, int, float]] = field(default_factory=list)
    clock: tuple[float, float] = field(default_factory=lambda: (time.process_time(), time.perf_counter()))
    told: float = 0.0

    @property
    def spec(self) -> TrialSpec:
        params = self.curve_set.params(self.key)
        hyper = assemble(self.curve_set.space, params)
        steps = self.curve_set.examples // hyper.batch_size
        return TrialSpec(
            number=_number(self.key),
            params=params,
            hyper=hyper,
            seed=_number(self.key) + 1,
            data_seed=self.key.repeat + 1,
            steps=steps,
            evaluate_every=steps // self.curve_set.evaluations,
        )

    def add(self, event: Measurement, test: Mapping[str, float]) -> None:
        """An evaluation: the trainer's seconds are of the wall, of which the process has had a part."""
        clock = time.process_time(), time.perf_counter()
        share = (clock[0] - self.clock[0]) / (clock[1] - self.clock[1])
        before = self.rows[-1][2] if self.rows else 0.0
        seconds = before + min(1.0, share) * (event.seconds - self.told)
        self.clock, self.told = clock, event.seconds
        loss = math.nan if event.training_loss is None else event.training_loss
        self.rows.append((self._values(event.metrics), self._values(test), seconds, event.tokens, loss))
        self.done += 1

    def fail(self, event: TrialFailure) -> None:
        """A training that diverged has no values from here."""
        if event.reason is not StopReason.DIVERGED:
            raise RuntimeError(f"{self.curve_set.name}, configuration {self.key.configuration}: {event.message}")
        nothing = np.full(len(self.curve_set.metrics), np.nan)
        last = self.rows[-1][2:4] if self.rows else (0.0, 0)
        self.rows += [(nothing, nothing, *last, math.nan)] * (self.curve_set.evaluations - self.done)
        self.done = self.curve_set.evaluations

    def curve(self) -> Curve:
        """What was measured, whole."""
        validation, test, seconds, tokens, losses = (
            np.array(column, dtype=np.float64) for column in zip(*self.rows, strict=True)
        )
        return Curve(
            configuration=self.curve_set.configuration(self.key),
            validation=validation,
            test=test,
            seconds=seconds,
            tokens=tokens,
            losses=losses,
        )

    def _values(self, metrics: Mapping[str, float]) -> Floats:
        return np.array([metrics[name] for name in self.curve_set.metrics])
