"""A whole search for accuracy and few parameters: stopped, continued, and asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from automl.cli.main import main
from automl.errors import InterruptedSearch
from automl.execution.stop import StopRequest
from automl.results.summary import Summary
from automl.space.load import load_space
from automl.storage.invariants import check
from automl.storage.sql import open_database
from automl.study.study import Study
from automl.sweep.run import Observer, run_sweep
from tests.sweep.tiny_world import make_world

TRIALS = 5
# By rank the size, by rate the quality.
ENQUEUED = "enqueue:\n" + "".join(
    f"  - {{rank: {rank}, learning_rate: {rate}}}\n"
    for rank, rate in ((4, 0.03), (8, 0.001), (1, 0.03), (2, 0.001), (8, 0.03))
)


class StopsInTheMiddle(Observer):
    """Has the search stopped, as by Ctrl-C, as soon as some trial has a value."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def started(self, study: Study) -> None:
        self._study: Study | None = study

    def tick(self) -> None:
        if self._study is not None and self._study.latest:
            self._study = None
            self._stop.request("Ctrl-C")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, Summary]:
    """The folder of a search that was stopped and continued, and its summary."""
    folder = tmp_path_factory.mktemp("front")
    path = make_world(folder, trials=TRIALS)
    text = path.read_text(encoding="utf-8")
    assert "sampler: random, pruner: none" in text
    text = text.replace("sampler: random, pruner: none", "sampler: tpe, also_minimize: trainable_params")
    path.write_text(text.replace("keep: 2", "keep: 1") + ENQUEUED, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stop = StopRequest()
        with pytest.raises(InterruptedSearch):
            run_sweep(load_space(path), shared_cache, observer=StopsInTheMiddle(stop), stop=stop)
        return folder, run_sweep(load_space(path), shared_cache)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints; it must have succeeded."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return printed.out


def test_the_outcome_is_the_front(searched: tuple[Path, Summary]) -> None:
    folder, summary = searched
    assert summary.counts["COMPLETE"] == TRIALS
    front = summary.front
    assert all(row.size == row.trainable_params for row in summary.trials)
    both = [(row.size or 0.0, row.value or 0.0) for row in front]
    assert both == sorted(both)
    assert [value for _, value in both] == sorted({value for _, value in both}), "the larger, the better"
    assert summary.best == front[-1] != front[0]
    for row in summary.trials:
        assert any((mine.value or 0) >= (row.value or 0) and (mine.size or 0) <= (row.size or 0) for mine in front)
    made = folder / "automl-output" / "tiny"
    written: Any = json.loads((made / "summary.json").read_text(encoding="utf-8"))
    assert [row["number"] for row in written["front"]] == [row.number for row in front]
    assert "Pareto front of accuracy and trainable_params" in (made / "summary.md").read_text(encoding="utf-8")


def test_the_front_stays_on_disk_and_nothing_else(searched: tuple[Path, Summary]) -> None:
    folder, summary = searched
    made = folder / "automl-output" / "tiny"
    assert {path.name for path in (made / "adapters").iterdir()} == {f"trial-{row.number:05d}" for row in summary.front}
    assert summary.best is not None
    assert summary.best.adapter is not None
    assert (made / "best").resolve() == Path(summary.best.adapter).resolve()
    with open_database(f"sqlite:///{folder / 'automl.db'}", create=False) as database:
        assert check(database, "tiny", finished=True, max_trials=TRIALS) == []


def test_the_report_draws_the_front(searched: tuple[Path, Summary]) -> None:
    folder, summary = searched
    document: Any = json.loads((folder / "automl-output/tiny/report.json").read_text(encoding="utf-8"))
    assert document["pareto"] == [row.number for row in summary.front]
    assert document["search"]["also_minimize"] == "trainable_params"
    assert document["best"] == summary.front[-1].number
    page = (folder / "automl-output/tiny/report.md").read_text(encoding="utf-8")
    assert "The search had two objectives: accuracy, and as little size as possible." in page


def test_commands_show_the_front(
    searched: tuple[Path, Summary], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, summary = searched
    monkeypatch.chdir(folder)
    listed = asked(capsys, "best")
    assert "Pareto front; any of these: automl export tiny --trial N" in listed
    for row in summary.front:
        assert f"{row.size:,.0f}" in listed
    assert "trainable_params" in asked(capsys, "trials", "tiny")
    assert "front" in asked(capsys, "status", "tiny").lower()


def test_the_smallest_of_the_front_can_be_exported(
    searched: tuple[Path, Summary],
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, summary = searched
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUTOML_CACHE", str(shared_cache))
    smallest = summary.front[0]
    arguments = ("export", "tiny", "--trial", str(smallest.number), "-o", str(tmp_path / "small"), "--json")
    exported = json.loads(asked(capsys, *arguments))
    assert (exported["trial"], exported["measured"]) == (smallest.number, pytest.approx(smallest.value, rel=1e-6))
