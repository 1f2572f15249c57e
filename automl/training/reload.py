"""Proof that what was exported is complete: it is loaded in a fresh process, by the lines that a user is told."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from automl.errors import ModelError
from automl.models.backbone import DTYPES
from automl.models.calling import quietly
from automl.models.quantised import compute_as_in_training
from automl.training.export import as_trained
from automl.training.runtime import HostSettings, Split, load_runtime, stored_dtype


class Reloaded(NamedTuple):
    """What was found: the task's metrics, and the model's class names in the order of their ids."""

    metrics: dict[str, float]
    labels: tuple[str, ...]


def measure_afresh(
    programs: Sequence[Sequence[str]], settings: HostSettings, split: Split = "validation"
) -> list[Reloaded]:
    """Run these programs, lines of Python that leave a `model`, in a process that has nothing else; evaluate each.

    One after the other, in one process. Rows and evaluation are those of `settings`, its backbone is not read. Raises
    ModelError if the lines fail.
    """
    ours, theirs = Pipe()
    with ours:
        # Not by multiprocessing: its processes begin with the caller's script, and may so begin the search again.
        fresh = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with fresh:
            ours.send((["\n".join(lines) for lines in programs], settings, split))
            try:
                found: list[Reloaded] | Exception = ours.recv()
            except EOFError:
                found = ModelError(f"the process that loads the exported model ended with code {fresh.wait()}")
    if isinstance(found, Exception):
        raise found
    return found


def serve(descriptor: int) -> None:
    """Measure for the process at the other end of a pipe."""
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        texts, settings, split = connection.recv()
        connection.send([_measure(text, settings, split) for text in texts])
    except Exception as error:  # noqa: BLE001 - the edge of the process: who asked raises it
        connection.send(error)


def _measure(text: str, settings: HostSettings, split: Split) -> Reloaded:
    model = _model_of(text)
    as_trained(model)
    compute_as_in_training(model, DTYPES[stored_dtype(settings.precision)])
    runtime = load_runtime(replace(settings, judged_on=split), model)
    found = runtime.evaluate(runtime.model, runtime.evaluation_rows, runtime.evaluation_tokens)
    config: Any = runtime.model.config
    names = config.id2label if settings.prepared.labels else {}
    return Reloaded(found, tuple(names[index] for index in sorted(names)))


def _model_of(text: str) -> torch.nn.Module:
    """The `model` that the lines make. Its base is loaded from a folder of ours; nothing here comes from outside."""
    names: dict[str, Any] = {}
    with quietly("the exported model cannot be loaded as printed"), warnings.catch_warnings(action="ignore"):
        exec(text, names)  # noqa: S102
    model = names["model"]
    assert isinstance(model, torch.nn.Module)
    return model
