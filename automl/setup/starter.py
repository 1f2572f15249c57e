"""The first steps with a new model or data set: a space file to begin with, and a look inside a model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from automl.errors import ConfigError, DataError, Problem
from automl.head import Kind
from automl.methods.registry import METHODS
from automl.methods.settings import Span
from automl.methods.virtual import TOKENS
from automl.models.backbone import BackboneRef, load_tokenizer, resolve_model, skeleton
from automl.models.folder import folder_at_hand, read_config
from automl.models.inventory import ModelReport, inspect_model, resolvable_sets
from automl.models.memory import MethodCost, held_bytes, method_costs
from automl.models.positions import Positions, positions
from automl.results.folders import cache_folder
from automl.setup.shape import PAIR_COLUMNS, columns_of, fitting, guess, renamed
from automl.space.budget import coverage_advice, starting_budget
from automl.space.entries import TASKS, head_of
from automl.space.load import load_spaces, parse_space
from automl.space.messages import shown
from automl.space.priors import prior_of
from automl.space.spec import DataSettings, ModelSettings, SweepSpec, TaskSettings
from automl.space.template import DEFAULT_LENGTH, commented_space
from automl.tasks import make_task
from automl.tasks.fields import Record
from automl.tasks.prepare import SHARE, share_length
from automl.tasks.read import read_splits
from automl.training.beginning import resolve_start

_LOOKED_AT = 200
_COUNTED = 200_000
"""Rows that are counted; so many are enough to say that a trial sees few of them."""

_JUDGED = {"classification": "label", "token_classification": "tags"}
"""Column with the class of a row, or with a class for each word, by task."""
_SINGLE_LABELS = {"loss": "kto"}
_MEASURED = 2000
_SHORTEST = 16
_LONGEST_PIECE = 512
"""Tokens of a piece of a long text, to begin with: attention over more costs more than it teaches."""
_ROUND = 8


class StartingSpace(NamedTuple):
    """The text of a space file, and what a trial by it would see too little of, in lines; mostly none."""

    text: str
    advice: Sequence[str]


def starting_space(
    model: str,
    data: str,
    *,
    task_type: str | None,
    study: str | None,
    methods: Sequence[str] = (),
    folder: Path | None = None,
) -> StartingSpace:
    """A commented space file for this model and data: ranges by the model's size, a budget by the rows.

    task_type: None reads it off the data's columns. methods: searched ones, or the one that is fixed. folder: where the
    file will lie, from which its paths start; None: here. Raises ModelError and DataError as a search would, DataError
    if the columns do not tell what the task is, and ConfigError for a method or a task that is not there, or for what
    is no name of a study.
    """
    if task_type is not None and task_type not in TASKS:
        raise ConfigError([Problem("", 0, 0, "--task", TASKS.unknown(task_type))])
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError([Problem("", 0, 0, "--method", METHODS.unknown(unknown[0]))])
    spec = _provisional(model, data, study or "start")
    first = _first_records(spec.task.data, has_classes=task_type != "completion")
    columns = columns_of(first)
    found, names = guess(first, columns, data) if task_type is None else (task_type, renamed(columns, task_type))
    backbone = resolve_model(spec.model, cache_folder())
    config = json.loads((Path(backbone.path) / "config.json").read_text(encoding="utf-8"))
    if task_type is None:
        found, names = fitting(found, names, columns, is_encoder_decoder=bool(config.get("is_encoder_decoder")))
    target_sets = resolvable_sets(skeleton(backbone, head_of(found)))
    settings = parse_space(commented_space("start", model, data, found, columns=names), "command line", Path.cwd()).task
    lengths, of_targets = _lengths(backbone, settings)
    limit = _positions(config, methods)
    longest, cut = _max_length(limit, lengths, in_pieces=_is_cut_in_pieces(found, data))
    seen = _amounts(settings)
    if len(seen.classes) == 1 and seen.is_all:
        column = settings.data.columns.get(_JUDGED[found], _JUDGED[found])
        only = f"only one class, {shown(next(iter(seen.classes)))}, in the training rows; two are needed"
        raise DataError(f"{data}, column {column!r}: {only}")
    pieces = _pieces(lengths, longest) if _is_cut_in_pieces(found, data) else 1.0
    rows = max(1, round(seen.rows * pieces))
    classes = len(seen.classes) if found == "classification" else 0  # of tags a row has many
    budget = starting_budget(rows, classes, longest)
    text = commented_space(
        study or study_name(data),
        _seen_from(folder, model, is_local=spec.model.kind in ("folder", "gguf")),
        _seen_from(folder, data, is_local=spec.task.data.kind in ("folder", "files")),
        found,
        backbone.parameters,
        names,
        target_sets,
        max_length=longest,
        target_length=_max_length(limit, of_targets, in_pieces=False)[0],
        cut=cut,
        methods=tuple(dict.fromkeys(methods)),
        fixed=_SINGLE_LABELS if found == "preference" and not set(columns) >= PAIR_COLUMNS else {},
        budget=budget,
        prior=prior_of(str(config.get("model_type")), backbone.parameters),
    )
    return StartingSpace(text, coverage_advice(rows, classes, steps=budget.steps, batch_size=budget.batch_size))


class _Amounts(NamedTuple):
    """Rows of the training split, about, and the classes or tags that were seen. is_all: whether every row was."""

    rows: float
    classes: set[str]
    is_all: bool


def guess_task(data: DataSettings, name: str, model: ModelSettings) -> tuple[str, Mapping[str, str]]:
    """The type of task that fits the columns of the data, and our column name -> theirs where they differ.

    name: the data's, in messages. model: tells which of two tasks is meant if it is on this machine. Raises DataError
    if the columns do not tell.
    """
    theirs = {found: ours for ours, found in data.columns.items()}
    records = _first_records(data)
    columns = [theirs.get(column, column) for column in columns_of(records)]
    found, names = guess(records, columns, name)
    if (folder := folder_at_hand(model)) is not None:
        found, names = fitting(found, names, columns, is_encoder_decoder=_is_encoder_decoder(folder))
    return found, {ours: column for ours, column in names.items() if ours != column}


def inspect_location(model: str, labels: int) -> ModelReport:
    """Describe a model given as on the command line, with a head for `labels` classes (0: a language model)."""
    network, targets = _network(model, labels)
    return replace(inspect_model(network, targets), weights=held_bytes(network))


def inspect_methods(model: str, labels: int) -> list[MethodCost]:
    """What each method would train in the model, and its memory; arguments as of `inspect_location`."""
    network, targets = _network(model, labels)
    return method_costs(network, targets)


def _network(model: str, labels: int) -> tuple[nn.Module, Mapping[str, Sequence[str]]]:
    """Shapes of the model, and the target sets that come with it.

    `model` may also be a space file: then its model and its own target sets.
    """
    is_space = model.endswith((".yaml", ".yml"))
    spec = load_spaces(Path(model))[0] if is_space else _provisional(model, "data.jsonl")
    backbone = resolve_start(spec.model, cache_folder())
    names = tuple(str(number) for number in range(labels))
    writes: Kind = "seq2seq-lm" if _is_encoder_decoder(Path(backbone.folder)) else "causal-lm"
    return skeleton(backbone, "classification" if labels else writes, names), spec.space.targets


def _is_encoder_decoder(folder: Path) -> bool:
    return bool(read_config(folder).get("is_encoder_decoder"))


def _amounts(settings: TaskSettings) -> _Amounts:
    """By the first 200,000 rows."""
    splits = read_splits(settings.data, has_classes=settings.type == "classification")
    column = _JUDGED.get(settings.type, "")
    label = settings.data.columns.get(column, column)
    rows, classes = 0, set[str]()
    for record in islice(splits["train"], _COUNTED):
        rows += 1
        value = record.values.get(label) if column else None
        if value is not None:
            classes.update(map(str, value) if isinstance(value, list) else [str(value)])
    shares = {"test": settings.test_share, "validation": settings.validation_share}
    kept = 1.0 - sum(share for split, share in shares.items() if split not in splits)
    return _Amounts(kept * rows, classes, rows < _COUNTED)


def _is_cut_in_pieces(task_type: str, data: str) -> bool:
    return task_type == "completion" and data.lower().endswith(".txt")


def _pieces(lengths: Sequence[int], longest: int) -> float:
    """Pieces of at most `longest` tokens that a text is cut into, on average."""
    return sum(-(-length // longest) for length in lengths) / len(lengths) if lengths else 1.0


def _lengths(backbone: BackboneRef, settings: TaskSettings) -> tuple[list[int], list[int]]:
    """Tokens of the first training rows, and of their targets apart; raises DataError if no row can be used."""
    cut = replace(settings, bad_rows="skip", long_texts="cut")
    task, tokenizer = make_task(cut), load_tokenizer(backbone)
    return task.lengths(tokenizer, _MEASURED), task.target_lengths(tokenizer, _MEASURED)


def _positions(config: Mapping[str, Any], methods: Sequence[str]) -> Positions | None:
    """Those of the model that are left for a text beside as many virtual tokens as these methods may have."""
    limit = positions(config)
    assert isinstance(TOKENS.tried, Span)
    most = int(TOKENS.tried.high) if any(TOKENS in METHODS[name].settings for name in methods) else 0
    if limit is None or not limit.is_hard or limit.tokens < most + _SHORTEST:
        return limit
    return limit._replace(tokens=limit.tokens - most)


def _max_length(limit: Positions | None, lengths: Sequence[int], *, in_pieces: bool) -> tuple[int, str]:
    """A length that leaves most rows whole, within what the model can read, and what it means in words."""
    if not lengths:
        return DEFAULT_LENGTH, "longer ones are cut"
    most = share_length(lengths)
    wanted = max(_SHORTEST, -(-most // _ROUND) * _ROUND)
    if in_pieces:
        longest = min(wanted, _LONGEST_PIECE, limit.tokens if limit is not None else wanted)
        return longest, "the text is cut into pieces of so many, and nothing is left out"
    covered = f"{SHARE:.0%} of the rows have at most {most:,}"
    if limit is not None and limit.tokens < wanted:
        return limit.tokens, f"{covered}, the model reads {limit.tokens:,}; longer ones are cut"
    return wanted, f"{covered}; longer ones are cut"


def _seen_from(folder: Path | None, place: str, *, is_local: bool) -> str:
    """What a file in `folder` calls a model or data that are given by a path from here."""
    if folder is None or not is_local or place.startswith("~") or os.path.isabs(place):
        return place
    found = os.path.relpath(place, folder)
    if found == os.path.normpath(place):
        return place
    return found if found.startswith(os.pardir) else os.path.join(os.curdir, found)


def _provisional(model: str, data: str, study: str = "start") -> SweepSpec:
    """Model and data as the space file would mean them: the template is valid whatever they are."""
    return parse_space(commented_space(study, model, data, "classification"), "command line", Path.cwd())


def _first_records(data: DataSettings, *, has_classes: bool = True) -> list[Record]:
    """The first rows of the training data."""
    return list(islice(read_splits(data, has_classes=has_classes)["train"], _LOOKED_AT))


def study_name(data: str) -> str:
    """What a study of the data at this place is called, unless somebody says otherwise."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).stem).strip("-._")
    return name[:100] or "study"
