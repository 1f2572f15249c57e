"""Recorded LoRA trainings of one set of texts, in a file that numpy alone reads: configurations, curves, where from.

Written by `benchmarks.lora_curves`, read by the replay and by whoever wants to know what a hyperparameter does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from automl.durable import replace_file
from automl.trial import Scalar

TARGETS = ("qv", "attention", "mlp", "all-linear")
"""Target sets, from few to all layers; the column `target` holds their places."""

WHOLE = 96
"""Configurations of a whole table. Searches in a part of one would say little, and use it up."""

Floats = NDArray[np.float64]


class Key(NamedTuple):
    """A training: the number of its configuration, and 0, or 1 where it was trained once more with another seed."""

    configuration: int
    repeat: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One training. configuration: by name, in the order of the columns; numbers alone.

    validation, test: (E, M), NaN from where it diverged. seconds, tokens: (E,), of training, since its beginning;
    seconds are those of a processor. losses: (E,), mean training loss since the evaluation before, NaN where it was
    not kept.
    """

    configuration: Mapping[str, float]
    validation: Floats
    test: Floats
    seconds: Floats
    tokens: Floats
    losses: Floats


@dataclass(slots=True, kw_only=True, eq=False)
class CurveFile:
    """The trainings of one set, by key. metrics: (M), the objective first.

    plan: all that the curves depend on, beside key and configuration. runs: on which machines they were made.
    """

    path: Path
    plan: Mapping[str, Any]
    metrics: Sequence[str]
    runs: list[Mapping[str, Any]] = field(default_factory=list)
    curves: dict[Key, Curve] = field(default_factory=dict)

    def add(self, key: Key, curve: Curve) -> None:
        """Store a training at once: another file takes the place of the old one."""
        self.curves[key] = curve
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **self._arrays())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, stream.getvalue())

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        keys = sorted(self.curves)
        curves = [self.curves[key] for key in keys]
        return {
            "plan": np.array(json.dumps(self.plan, sort_keys=True)),
            "runs": np.array(json.dumps(self.runs)),
            "metrics": np.array(list(self.metrics)),
            "names": np.array(list(curves[0].configuration)),
            "keys": np.array(keys),
            "configurations": np.array([list(curve.configuration.values()) for curve in curves]),
            **{
                name: np.array([getattr(curve, name) for curve in curves])
                for name in ("validation", "test", "seconds", "tokens", "losses")
            },
        }


def read_curves(path: Path) -> CurveFile:
    """What has been recorded of one set. Raises OSError, and ValueError or KeyError for what is no such file."""
    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["names"]]
        columns = [file[name] for name in ("configurations", "validation", "test", "seconds", "tokens")]
        columns.append(file["losses"] if "losses" in file else np.full(file["seconds"].shape, np.nan))
        curves = {
            Key(*map(int, key)): Curve(
                configuration=dict(zip(names, map(float, values), strict=True)),
                validation=validation,
                test=test,
                seconds=seconds,
                tokens=tokens,
                losses=losses,
            )
            for key, values, validation, test, seconds, tokens, losses in zip(file["keys"], *columns, strict=True)
        }
        return CurveFile(
            path=path,
            plan=json.loads(str(file["plan"])),
            runs=json.loads(str(file["runs"])),
            metrics=[str(name) for name in file["metrics"]],
            curves=curves,
        )


def as_numbers(params: Mapping[str, Scalar], alpha: float) -> Iterator[tuple[str, float]]:
    """A point of the space as columns, and alpha itself beside its ratio to the rank."""
    for name, value in params.items():
        yield name, float(TARGETS.index(str(value))) if name == "target" else float(value)
    yield "alpha", alpha
