"""A search with a limit on memory: what does not fit is told before, never started, and takes nothing of the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from automl.errors import ConfigError, ResourceError, StudyNotFoundError
from automl.setup.plan import make_plan
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.sql import open_database
from automl.storage.trials import list_trials
from automl.sweep.run import run_sweep
from tests.sweep.tiny_world import make_world

RANKS = "{type: int, low: 1, high: 8, log: true}"


def world(folder: Path, ranks: str, memory: str = "10MB") -> SweepSpec:
    """A tiny model of 0.1 MB, whose adapters take 14 kB for each rank."""
    file = make_world(folder, trials=2, steps=5, slots=1)
    text = (
        file.read_text()
        .replace(RANKS, ranks)
        .replace("target: qv", "target: all-linear")
        .replace("slots: 1", f"slots: 1, memory: {memory}")
    )
    file.write_text(text + "enqueue: [{rank: 1024, learning_rate: 1.0e-3}]\n" * (", 1024" in ranks), encoding="utf-8")
    spec = load_space(file)
    return replace(spec, run=replace(spec.run, output=folder / "out"), storage_url=f"sqlite:///{folder / 'automl.db'}")


def test_what_does_not_fit_is_never_started(tmp_path: Path) -> None:
    spec = world(tmp_path, "{type: categorical, choices: [2, 1024]}")
    plan = make_plan(spec, tmp_path / "cache", probe=False)
    (told,) = [text for text in plan.advice if "memory" in text]
    assert told.startswith("a trial of method lora, rank 1024, target all-linear needs 15 MB of memory even alone")
    assert told.endswith("and 10 MB are there: it is not started")

    summary = run_sweep(spec, tmp_path / "cache")
    assert summary.best is not None
    assert summary.best.params["rank"] == 2
    with open_database(spec.storage_url, create=False) as database:
        refused, *others = list_trials(database, "tiny")
        assert not database.store("tiny").attempts(refused.number)
    assert (refused.state, refused.stop_reason, refused.steps) == ("FAIL", "infeasible", 0)
    assert "needs 15 MB of memory" in str(refused.error)
    assert [trial.params["rank"] for trial in others] == [2, 2]

    short = replace(spec, run=replace(spec.run, memory=10_000))
    assert run_sweep(short, tmp_path / "cache").counts == summary.counts  # nothing is to be trained any more


def test_a_space_of_which_nothing_fits_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    spec = world(tmp_path, "{type: categorical, choices: [900, 1000]}")
    with pytest.raises(
        ResourceError, match=r"no trial of this space fits: method lora, rank 900, target all-linear needs 13 MB"
    ):
        run_sweep(spec, tmp_path / "cache")
    with open_database(spec.storage_url, create=False) as database, pytest.raises(StudyNotFoundError):
        list_trials(database, "tiny")


@pytest.mark.parametrize("memory", ["true", "[1]", "24 bananas", "-3GB", "0", "1kB", "''", "0.001"])
def test_a_memory_that_is_no_size_is_told_at_its_line(tmp_path: Path, memory: str) -> None:
    with pytest.raises(ConfigError, match=r"space.yaml:\d+:\d+: run.memory: .*write 80GB, 24GiB, 40000MB"):
        world(tmp_path, RANKS, memory)


@pytest.mark.parametrize(("memory", "size"), [("24GB", 24 * 10**9), ("24", 24 * 10**9), ("1.5 GiB", 3 * 2**29)])
def test_a_memory_is_read_with_its_unit(tmp_path: Path, memory: str, size: int) -> None:
    assert world(tmp_path, RANKS, memory).run.memory == size
