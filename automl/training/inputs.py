"""Directions in which the inputs of the layers vary, for trials that start from them (init eva): found once per study.

The untuned model reads training rows in one fixed order, as many as have TOKENS tokens, in one forward pass. What comes
of it lies in a file that is named after everything it depends on, so that all trials, workers and later runs share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from automl import durable
from automl.methods.eva import Directions, InputVariation
from automl.tasks.base import IGNORED, Batch, Row
from automl.tasks.batches import batch_rows

logger = logging.getLogger(__name__)

TOKENS = 8192
"""Tokens of the rows that are read: thousands for each direction of usual ranks, and few beside those of one trial."""

_LEADERS = "leaders"


def kept_directions(file: Path, make: Callable[[], Directions]) -> Directions:
    """The directions that the file holds; made and written if it is not there or damaged, by one process at a time.

    Raises ResourceError if the disk refuses.
    """
    with durable.disk_errors_named(file.parent):
        durable.make_folder(file.parent)
        with durable.locked(file):
            known = _read(file)
            if known is None:
                known = make()
                durable.replace_file(file, _packed(known))
            return known


def file_name(layers: Sequence[str], count: int, seed: int) -> str:
    """Name of the file of so many directions. seed: of the order in which rows are read."""
    about = durable.canonical({"layers": list(layers), "count": count, "seed": seed, "tokens": TOKENS})
    return f"inputs-{hashlib.sha256(about).hexdigest()[:16]}.safetensors"


def rows_to_read(rows: Sequence[Row], seed: int) -> Iterator[Row]:
    """The rows that are read, in an order of their own."""
    left = TOKENS
    for place in batch_rows(seed, 0, len(rows), len(rows)):
        if left <= 0:
            return
        yield (row := rows[place])
        left -= len(row["input_ids"])


def directions_of_inputs(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Batch], forward: Callable[[Batch], Any], count: int
) -> dict[str, Tensor]:
    """`count` directions of the inputs of each layer, fewer if there are no more; layers that read the same share them.

    layers: paths. batches: on the model's device. forward: a pass of this model.
    """
    watched = _Watched(model, layers, count)
    with torch.no_grad():
        for batch in batches:
            watched.see(_is_read(batch), partial(forward, batch))
    return watched.directions()


class _Watched:
    """Layers whose inputs are taken in while the model computes; those that read the same tensor are taken as one."""

    def __init__(self, model: nn.Module, layers: Sequence[str], count: int) -> None:
        self._modules = {path: model.get_submodule(path) for path in layers}
        self._count = count
        self._leader: dict[str, str] = {}
        self._found: dict[str, InputVariation] = {}

    def see(self, is_read: Tensor, forward: Callable[[], Any]) -> None:
        """Take in the inputs of one forward pass. is_read: which tokens count, (N, T)."""
        there: dict[int, tuple[weakref.ref[Tensor], str]] = {}

        def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def seen(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                x = inputs[0]
                known, leader = there.get(id(x), (None, path))
                if known is None or known() is not x:
                    leader = path
                    there[id(x)] = weakref.ref(x), path
                if self._leader.setdefault(path, leader) == path:
                    self._variation(path).add(_tokens_of(x, is_read))

            return seen

        with ExitStack() as hooks:
            for path, module in self._modules.items():
                if self._leader.get(path, path) == path:
                    hooks.callback(module.register_forward_pre_hook(hook(path)).remove)
            forward()

    def directions(self) -> dict[str, Tensor]:
        """Those of every layer that was reached, (n, in)."""
        own = {path: variation.directions() for path, variation in self._found.items()}
        return {path: own[leader] for path, leader in self._leader.items()}

    def _variation(self, path: str) -> InputVariation:
        if path not in self._found:
            self._found[path] = InputVariation(self._count)
        return self._found[path]


def _is_read(batch: Batch) -> Tensor:
    """Tokens whose inputs count: no padding, and where tokens are learnt those that are, as PEFT has it for EVA."""
    is_read = batch["attention_mask"].bool()
    labels = batch["labels"]
    return is_read & (labels != IGNORED) if labels.shape == is_read.shape else is_read


def _tokens_of(x: Tensor, is_read: Tensor) -> Tensor:
    """Inputs of a layer as rows; all of them where they are not one for each token."""
    return x[is_read] if x.shape[:-1] == is_read.shape else x.flatten(0, -2)


def _packed(known: Directions) -> bytes:
    """A safetensors file in which layers that share their directions have them once."""
    names: dict[int, str] = {}
    leaders = {path: names.setdefault(id(tensor), path) for path, tensor in known.items()}
    own = {path: known[path].contiguous() for path in names.values()}
    file: bytes = save(own, metadata={_LEADERS: json.dumps(leaders)})
    return file


def _read(file: Path) -> Directions | None:
    """What `_packed` wrote, None if it is not there or damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as held:
            leaders: Mapping[str, str] = json.loads(held.metadata()[_LEADERS])
            own = {path: held.get_tensor(path) for path in set(leaders.values())}
            return {path: own[leader] for path, leader in leaders.items()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is damaged (%s) and made anew", file, error)
        return None
