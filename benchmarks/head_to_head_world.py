"""The ground of `head_to_head`: parts of public sets, the space that all arms search, and training the chosen anew.

The space, the examples of a full trial, the length of rows and the batch size are those that `automl init` writes for
the set; every arm has them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.utils import logging

from automl.models.backbone import resolve_model, skeleton
from automl.models.inventory import resolve_targets
from automl.setup.starter import starting_space
from automl.space.spec import ModelSettings
from benchmarks.baselines.loop import PeftLoop
from benchmarks.baselines.search import completed
from benchmarks.squeeze_world import TextSet, write_part

SPLITS = ("train", "validation", "test")
STUDY = "head-to-head"
EVALUATIONS = 8
"""A full trial of the others has so many, all on the same rows: rungs at 1, 2, 4 and 8. Ours has those of `init`."""

SETS = {
    each.name: each
    for each in (
        TextSet(name="trec", train=2000, validation=300, test=500),
        TextSet(name="banking77", train=4000, validation=400, test=1000),
        TextSet(name="sst2", train=2000, validation=300, test=1000),
        TextSet(name="agnews_10k", train=2000, validation=300, test=1000),
        TextSet(name="mr", train=2000, validation=300, test=1000),
        TextSet(name="sms_spam", train=2000, validation=300, test=500),
    )
}
"""Sets of MiniLM. Of a TextSet only its rows count here."""

_UNDERSTOOD = {"rank", "alpha_ratio", "dropout", "target", "learning_rate", "batch_size"}
"""Hyperparameters that all arms can be told of."""

_LEFT_ALONE = {"max_length": None, "class_weights": "none"}
"""What else may be fixed, and to what; None = anything, it is said elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One set with its model, and what `automl init` makes of them. model: folder.

    starter: its file, with other epochs if some were asked for (0: none were).
    """

    text_set: TextSet
    folder: Path
    model: str
    fingerprint: str
    files: Mapping[str, str]
    labels: tuple[str, ...]
    targets: Mapping[str, list[str]]
    starter: Mapping[str, Any]
    epochs: int

    @property
    def plan(self) -> dict[str, Any]:
        """All that results depend on beside arm, seed and time; no place where anything lies on this machine."""
        document = self.document()
        for name in (*SPLITS, "model", "targets"):  # which follow from the model and the names of the sets
            del document[name]
        rows = {split: hashlib.sha256(Path(path).read_bytes()).hexdigest() for split, path in self.files.items()}
        parts = {split: getattr(self.text_set, split) for split in SPLITS}
        found = {**document, "rows": rows, "parts": parts, "model": self.fingerprint, "search": self.starter["search"]}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def document(self) -> dict[str, Any]:
        """What the searches of others, and whoever trains anew, have to know. Raises ValueError if they could not do
        what the space file asks for.
        """
        space, fixed, search = self.starter["space"], self.starter["fixed"], self.starter["search"]
        kept = {name: value for name, value in fixed.items() if name not in _LEFT_ALONE}
        unknown = [name for name in (*space, *kept) if name not in _UNDERSTOOD]
        unknown += [name for name, value in _LEFT_ALONE.items() if value and fixed.get(name, value) != value]
        if unknown:
            raise ValueError(f"automl init writes {', '.join(unknown)} for {self.text_set.name}; others cannot do that")
        batch, rows = fixed.get("batch_size", 8), self.text_set.train
        return {
            "model": self.model,
            "labels": list(self.labels),
            "targets": dict(self.targets),
            "space": {name: {"log": False, **parameter} for name, parameter in space.items()},
            "fixed": kept,
            "at_alpha": space.get("learning_rate", {}).get("at_alpha"),
            "max_length": fixed["max_length"],
            "examples": search["epochs"] * rows if "epochs" in search else search["steps"] * batch,
            "evaluations": EVALUATIONS,
            **self.files,
        }


def open_world(text_set: TextSet, data: Path, folder: Path, *, epochs: int = 0) -> World:
    """Write the part of the set and see what `automl init` makes of it. Raises what these raise.

    epochs: of a full trial, in place of what it writes; 0 = as it does.
    """
    files = write_part(text_set, data, folder / "data")
    kind = "folder" if "folder" in text_set.model else "package"
    settings = ModelSettings(kind=kind, location=text_set.model[kind], path=text_set.model.get("path", ""))  # type: ignore[arg-type]  # one of the two
    backbone = resolve_model(settings, folder / "cache")
    with open(files["train"], encoding="utf-8") as lines:
        labels = tuple(sorted({json.loads(line)["label"] for line in lines}, key=str))
    model = skeleton(backbone, "classification", tuple(map(str, labels)))
    text = starting_space(backbone.path, files["train"], task_type=None, study=STUDY, methods=(), folder=None).text
    starter = _with_epochs(yaml.safe_load(text), epochs)
    targets = starter["space"].get("target", {}).get("choices") or [starter["fixed"]["target"]]
    return World(
        text_set=text_set,
        folder=folder,
        model=backbone.path,
        fingerprint=backbone.fingerprint,
        files=files,
        labels=labels,
        targets={name: [layer.path for layer in resolve_targets(model, name)] for name in targets},
        starter=starter,
        epochs=epochs,
    )


def _with_epochs(document: dict[str, Any], epochs: int) -> dict[str, Any]:
    if epochs:
        document["search"].pop("steps", None)
        document["search"]["epochs"] = epochs
    return document


def edited(text: str, world: World, seed: int) -> str:
    """A file of `automl init` with the rows that all arms have in place of shares of one file, and another seed."""
    document = _with_epochs(yaml.safe_load(text), world.epochs)
    document["task"].pop("split", None)
    document["task"]["data"] = {"files": dict(world.files)}
    document["search"]["seed"] = seed
    return yaml.safe_dump(document, sort_keys=False)


@dataclass(frozen=True, slots=True)
class Anew:
    """A training of what a search has chosen. document: path of the world's. drawn: the point of the space."""

    document: str
    drawn: Mapping[str, Any]
    seed: int


def train_anew(job: Anew) -> dict[str, Any]:
    """Train a configuration to its end by the plain loop; its accuracy on test rows where it is best on validation
    rows, the earliest of equals.
    """
    torch.set_num_threads(1)
    loop, rows, world = _loop(job.document)
    wanted = completed(world, job.drawn)
    loop.begin(wanted, seed=job.seed, steps=wanted["steps"], batch_size=wanted["batch_size"])
    best, best_step, test = -1.0, 0, 0.0
    while loop.step < wanted["steps"]:
        loop.train_to(loop.step + wanted["evaluate_every"])
        value = loop.evaluate(rows["validation"])["accuracy"]
        if value > best:
            best, best_step, test = value, loop.step, loop.evaluate(rows["test"])["accuracy"]
    return {"test": test, "validation": best, "step": best_step, "steps": wanted["steps"]}


@lru_cache(maxsize=1)
def _loop(document: str) -> tuple[PeftLoop, dict[str, Any], dict[str, Any]]:
    """A process goes on with the model and the rows that it has."""
    world = json.loads(Path(document).read_text(encoding="utf-8"))
    logging.disable_progress_bar()  # one for each process would hide what is said
    loop = PeftLoop(world)
    return loop, {split: loop.rows(split) for split in ("validation", "test")}, world
