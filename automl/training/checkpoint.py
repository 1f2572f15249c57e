"""Slot files: a trial's state on disk, written before any of its values is believed.

`slots/trial-00012/` holds one mark `attempt-00003-<identity>` and the last two states, and that of the best evaluation
if the trial is worth that, each a sealed folder:
`step-00000040/{params,optimizer,importance,method}.safetensors, state.json, manifest.json`,
where importance and method are there only if they hold something. See docs/adr/0006-slot-files.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from automl import durable
from automl.errors import CheckpointError
from automl.lanes import own_number
from automl.training.runtime import HostSettings
from automl.training.state import SlotRecord, TrainState, identity
from automl.trial import BestCheckpoint, Examined, Measurement, ModuleImportance, TrialSpec
from automl.trial_folders import adapter_folder, slot_folder

logger = logging.getLogger(__name__)

KEPT = 2
"""States kept per trial: the newest, and the one before it in case the newest is damaged."""

_STEP = "step-"
_MARK = "attempt-"
_OPTIONAL = ("importance", "method")


def slot_files(settings: HostSettings, spec: TrialSpec) -> SlotFolder:
    """The slot files of the attempt that `spec` stands for; nothing is read or written yet."""
    settings, spec = settings.of(spec.number), replace(spec, number=own_number(spec.number))
    return SlotFolder(
        slot_folder(Path(settings.output), spec.number),
        attempt=spec.attempt,
        identity=identity(
            spec,
            backbone=settings.backbone.fingerprint,
            data=settings.prepared.fingerprint,
            precision=settings.precision,
            targets=settings.targets,
            shards=settings.shards,
            quantization=settings.backbone.quantization,
        ),
    )


def discard_slot_files(settings: HostSettings, trial: int) -> None:
    """Delete the slot files of a trial, whoever has them."""
    durable.remove_folder(slot_folder(Path(settings.of(trial).output), own_number(trial)))


def finished_folder(settings: HostSettings, trial: int) -> Path:
    """Where the adapter of a trial belongs that has made its last step, absolute."""
    return adapter_folder(Path(settings.of(trial).output).absolute(), own_number(trial))


def latest_attempt(output: Path, trial: int) -> int:
    """The latest attempt that has claimed the slot files of a trial, 0 if none has."""
    return max((attempt for attempt, _ in _marks(slot_folder(output, trial))), default=0)


class SlotFolder:
    """The slot files of one trial, as one attempt at it sees them.

    An attempt claims the folder before it reads or writes. From then on every older attempt is refused, so a worker
    that was given up for dead and comes back cannot overwrite what its successor has done.
    """

    def __init__(self, folder: Path, *, attempt: int, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.attempt = attempt
        self.identity = hashlib.sha256(durable.canonical(identity)).hexdigest()[:16]

    def claim(self) -> None:
        """Take the folder for this attempt; files of another computation under the same number are deleted.

        Raises CheckpointError if a later attempt has the folder already, ResourceError if the disk refuses.
        """
        with durable.disk_errors_named(self.folder):
            self._claim()

    def load(self) -> SlotRecord | None:
        """The newest undamaged state; None if nothing was ever saved.

        A damaged state is passed over with one line in the log. Raises CheckpointError if all are damaged.
        """
        steps = self._steps()
        for step in reversed(steps):
            folder = self._step(step)
            try:
                return _read(folder)
            except CheckpointError as error:
                logger.warning("passed over a slot file: %s", error)
        if steps:
            raise CheckpointError(f"{self.folder}: none of its {len(steps)} slot files is undamaged")
        return None

    def at(self, step: int) -> TrainState | None:
        """The state of this step, if it was kept and is undamaged; else None, and one line in the log."""
        try:
            return _read(self._step(step)).state
        except CheckpointError as error:
            logger.warning("passed over a slot file: %s", error)
            return None

    def save(self, record: SlotRecord, *, keep: Collection[int] = ()) -> None:
        """Write the state durably; afterwards it and the one before it are what is left in the folder, with those of
        the steps in `keep`.

        Raises CheckpointError if a later attempt has claimed the folder, ResourceError if the disk refuses.
        """
        self._refuse_if_superseded()
        step = record.state.step
        with durable.sealed_folder(self._step(step), {"step": step, "attempt": self.attempt}) as draft:
            durable.write_file(draft / "params.safetensors", save(dict(record.state.params)))
            durable.write_file(draft / "optimizer.safetensors", save(dict(record.state.moments)))
            for name in _OPTIONAL:
                if tensors := getattr(record.state, name):
                    durable.write_file(draft / f"{name}.safetensors", save(dict(tensors)))
            durable.write_file(draft / "state.json", durable.canonical(_to_json(record, self.attempt)))
        before = [other for other in self._steps() if other < step]
        for other in set(self._steps()) - {step, *before[len(before) - (KEPT - 1) :], *keep}:
            durable.remove_folder(self._step(other))

    def remove(self) -> None:
        """Delete the trial's slot files, unless a later attempt has claimed them."""
        if all(attempt <= self.attempt for attempt, _ in _marks(self.folder)):
            durable.remove_folder(self.folder)

    def _claim(self) -> None:
        if any(identity != self.identity for _, identity in _marks(self.folder)):
            logger.warning("%s: belongs to a trial with other settings; starting it anew", self.folder)
            durable.remove_folder(self.folder)
        durable.make_folder(self.folder)
        self._refuse_if_superseded()
        older = [attempt for attempt, _ in _marks(self.folder) if attempt < self.attempt]
        mark = self._mark(self.attempt)
        if not mark.exists():
            durable.write_file(mark, b"")
        for attempt in older:
            self._mark(attempt).unlink(missing_ok=True)
        durable.sync(self.folder)
        durable.remove_drafts(self.folder)

    def _refuse_if_superseded(self) -> None:
        newest = max((attempt for attempt, _ in _marks(self.folder)), default=0)
        if newest > self.attempt:
            raise CheckpointError(f"{self.folder}: attempt {self.attempt} is superseded by attempt {newest}")

    def _mark(self, attempt: int) -> Path:
        return self.folder / f"{_MARK}{attempt:05d}-{self.identity}"

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix(_STEP)) for path in self.folder.glob(f"{_STEP}*"))

    def _step(self, step: int) -> Path:
        return self.folder / f"{_STEP}{step:08d}"


def _marks(folder: Path) -> list[tuple[int, str]]:
    """(attempt, identity) of every claim. They stand in file names, where no bit can flip unseen."""
    names = [path.name.removeprefix(_MARK) for path in folder.glob(f"{_MARK}*")]
    return [(int(attempt), identity) for attempt, _, identity in (name.partition("-") for name in names)]


def _read(folder: Path) -> SlotRecord:
    """Raises CheckpointError if any byte differs from what was written."""
    durable.verify_folder(folder)
    document: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
    state = document["state"]
    return SlotRecord(
        state=TrainState(
            params=load_file(folder / "params.safetensors"),
            moments=load_file(folder / "optimizer.safetensors"),
            dropout=_from_base64(state.pop("dropout")),
            **{name: load_file(file) for name in _OPTIONAL if (file := folder / f"{name}.safetensors").exists()},
            **state,
        ),
        measurements=tuple(_measurement(item) for item in document["measurements"]),
    )


def _measurement(item: dict[str, Any]) -> Measurement:
    modules = [{**module, "components": tuple(module["components"])} for module in item.pop("importances", ())]
    examined = tuple(Examined(*found) for found in item.pop("examined", ()))
    best = None if (found := item.pop("best", None)) is None else BestCheckpoint(**found)
    importances = tuple(ModuleImportance(**module) for module in modules)
    return Measurement(**item, importances=importances, examined=examined, best=best)


def _to_json(record: SlotRecord, attempt: int) -> dict[str, Any]:
    state = record.state
    earlier = [replace(measurement, importances=()) for measurement in record.measurements[:-1]]
    return {
        "attempt": attempt,
        "state": {
            "step": state.step,
            "dropout": _to_base64(state.dropout),
            "micro_batch": state.micro_batch,
            "evaluation_tokens": state.evaluation_tokens,
            "seconds": state.seconds,
            "tokens": state.tokens,
        },
        "measurements": [asdict(measurement) for measurement in (*earlier, *record.measurements[-1:])],
    }


def _to_base64(tensor: Tensor | None) -> str | None:
    return None if tensor is None else base64.b64encode(bytes(tensor.tolist())).decode()


def _from_base64(text: str | None) -> Tensor | None:
    return None if text is None else torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
