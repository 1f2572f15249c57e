"""The bench on which adapters are put on the model, one after the other, mixed and measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from automl import durable, progress
from automl.compose.found import Mixture
from automl.compose.fusing import Fused, fuse
from automl.compose.members import Found, Member, averaged, numbers_in, read_member
from automl.compose.mixing import FUSION, Recipe, mixed
from automl.errors import InterruptedSearch
from automl.execution.stop import StopRequest
from automl.lora import Hyperparameters
from automl.methods.base import LowRank
from automl.methods.registry import METHODS
from automl.tasks.base import Row
from automl.training.cut import cut_hyperparameters, read_config, write_updates
from automl.training.examine import Evaluated
from automl.training.export import with_adapter
from automl.training.runtime import Runtime


class Bench:
    """The model of a runtime, adapters to be mixed, and a folder in which mixtures lie while they are looked at.

    What is measured is what was written: each mixture is loaded from its folder.
    """

    def __init__(self, runtime: Runtime, found: Sequence[Found], metric: str, scratch: Path, stop: StopRequest) -> None:
        self._runtime = runtime
        self._found = {each.number: each for each in found}
        self._metric = metric
        self._scratch = scratch
        self._stop = stop
        self._members: dict[int, Member] = {}
        self._known: dict[tuple[Recipe, tuple[int, ...]], Mixture] = {}
        self._fused: dict[tuple[Recipe, tuple[int, ...]], Fused] = {}

    def measure(self, number: int) -> Mixture:
        """A trial's own adapter, which is remembered for mixtures."""
        found = self._found[number]
        with self._telling(f"trial {number}"), self._loaded(found.folder, found.hyper.method) as adapted:
            self._members[number] = read_member(found, adapted)
            metrics, _ = self._evaluated(adapted, self._runtime.evaluation_rows)
        parameters = numbers_in(found.weights)
        return Mixture(name=f"trial {number}", trials=(number,), recipe=None, parameters=parameters, metrics=metrics)

    def mix(self, name: str, recipe: Recipe, trials: Sequence[int]) -> Mixture:
        """A mixture of trials that were measured; the same one is made once."""
        key = recipe, tuple(sorted(trials))
        if key not in self._known:
            self._known[key] = self._mixed(name, recipe, tuple(trials))
        return replace(self._known[key], name=name)

    def write(self, mixture: Mixture, folder: Path) -> None:
        """The mixture as an adapter's folder whose manifest says what it is and measures."""
        assert mixture.recipe is not None
        self._write(mixture.recipe, mixture.trials, folder, mixture)

    def score(self, mixture: Mixture, rows: Sequence[Row]) -> Evaluated:
        """All metrics over other rows, and what became of each, the longest rows first."""
        found = self._found[mixture.trials[0]]
        folder = found.folder if mixture.recipe is None else self._folder(mixture.recipe, mixture.trials)
        with self._telling(f"{mixture.name} on test rows"), self._loaded(folder, found.hyper.method) as adapted:
            return self._evaluated(adapted, rows)

    def _mixed(self, name: str, recipe: Recipe, trials: tuple[int, ...]) -> Mixture:
        folder = self._folder(recipe, trials)
        with self._telling(f"{name} of trials {', '.join(map(str, trials))}"):
            self._write(recipe, trials, folder)
            with self._loaded(folder, self._found[trials[0]].hyper.method) as adapted:
                metrics, _ = self._evaluated(adapted, self._runtime.evaluation_rows)
        parameters = numbers_in(folder / self._found[trials[0]].weights.name)
        return Mixture(name=name, trials=trials, recipe=recipe, parameters=parameters, metrics=metrics)

    def _write(self, recipe: Recipe, trials: Sequence[int], folder: Path, mixture: Mixture | None = None) -> None:
        if recipe.how == FUSION:
            self._write_fused(recipe, trials, folder, mixture)
            return
        members, source = [self._members[number] for number in trials], self._found[trials[0]]
        others = averaged(members)
        updates = _updates(members, recipe)
        about = self._described(source, updates, recipe, trials, mixture)
        if source.is_low_rank:
            write_updates(self._runtime.model, source.folder, folder, updates, others, about)
        else:
            _write_averaged(source, folder, others, about)

    def _write_fused(self, recipe: Recipe, trials: Sequence[int], folder: Path, mixture: Mixture | None) -> None:
        """Train what is not trained yet, and write it."""
        found, key = [self._found[number] for number in trials], (recipe, tuple(trials))
        if key not in self._fused:
            self._fused[key] = fuse(self._runtime, found, recipe, self._metric, self._check_running)
        fused, about = self._fused[key], self._described(found[0], [], recipe, trials, mixture)
        about["composed"].update(fused.about)
        _write_averaged(found[0], folder, fused.tensors, about)

    def _described(
        self,
        source: Found,
        updates: Sequence[LowRank],
        recipe: Recipe,
        trials: Sequence[int],
        mixture: Mixture | None,
    ) -> dict[str, Any]:
        """The manifest's words: those on the first trial's adapter, but for what is another one's now."""
        values = {} if mixture is None else dict(mixture.metrics)
        measured = {"metric": {"name": self._metric, "value": values[self._metric]}} if values else {}
        return {
            **source.about,
            "trial": None,
            "hyperparameters": _hyper(source, updates).as_dict(),
            "metrics": values,
            **measured,
            "composed": {**asdict(recipe), "trials": list(trials)},
        }

    @contextmanager
    def _loaded(self, folder: Path, method: str) -> Iterator[Any]:
        """The model with the adapter of this folder, until the end of the block."""
        adapted = with_adapter(self._runtime.model, folder).to(self._runtime.device).eval()
        try:
            yield adapted
        finally:
            METHODS[method].detach(adapted)

    def _evaluated(self, adapted: Any, rows: Sequence[Row]) -> Evaluated:
        return self._runtime.evaluate_by_row(adapted, rows, self._runtime.evaluation_tokens)

    def _folder(self, recipe: Recipe, trials: Sequence[int]) -> Path:
        density = "" if recipe.density is None else f"-{recipe.density:g}"
        return self._scratch / f"{recipe.how}{density}-{'-'.join(map(str, sorted(trials)))}"

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        self._check_running()
        with progress.telling(lambda: f"measuring {what}"):
            yield

    def _check_running(self) -> None:
        if self._stop.reason:
            raise InterruptedSearch(
                f"stopped ({self._stop.reason}); nothing was written, the same command starts again"
            )


def _updates(members: Sequence[Member], recipe: Recipe) -> list[LowRank]:
    """One update for each layer that any of them adapts; those that come out as nothing are left out."""
    paths = dict.fromkeys(path for member in members for path in member.updates)
    present = ([member.updates[path] for member in members if path in member.updates] for path in paths)
    made = (mixed(updates, len(members), recipe) for updates in present)
    return [update for update in made if len(update.a)]


def _hyper(source: Found, updates: Sequence[LowRank]) -> Hyperparameters:
    """The first trial's configuration, with ranks and scaling as they were written and no settings of its start."""
    if not updates:
        return source.hyper
    cut = cut_hyperparameters(read_config(source.folder), {update.path: len(update.a) for update in updates})
    size = {name: getattr(cut, name) for name in ("rank", "alpha", "use_rslora", "rank_pattern")}
    return replace(source.hyper, method="lora", own=(), **size)


def _write_averaged(source: Found, folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """An adapter like the source's with other numbers in it."""
    with durable.sealed_folder(folder, about) as draft:
        for path in source.folder.iterdir():
            if path.is_file() and path.name not in (source.weights.name, durable.MANIFEST):
                shutil.copyfile(path, draft / path.name)
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        durable.write_file(draft / source.weights.name, save(contiguous, metadata={"format": "pt"}))
