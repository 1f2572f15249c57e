"""What a search leaves on the disk while it runs: slot files of trials that may go on, and room for the next ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from automl.errors import InterruptedSearch
from automl.results import disk
from automl.results.disk import LEAST_FREE_BYTES, DiskWatch
from automl.space.load import load_space
from automl.study.study import Study, StudyEvent
from automl.sweep.run import Observer, run_sweep
from automl.trial_folders import slot_folder
from tests.sweep.tiny_world import make_world


class Watch(Observer):
    """Which trials have slot files, and which were given up, whenever a worker was heard of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given_up: set[int] = set()
        self.most = 0
        self.study: Study | None = None

    def started(self, study: Study) -> None:
        self.study = study

    def event(self, event: StudyEvent) -> None:
        if event.text.endswith("can no longer be promoted"):
            self.given_up.add(event.trial)

    def tick(self) -> None:
        there = {int(path.name.removeprefix("trial-")) for path in (self.folder / "slots").glob("trial-*")}
        assert not there & self.given_up
        assert 99 not in there, "left behind by a driver that was killed"
        self.most = max(self.most, len(there))


def test_a_full_disk_stops_a_search_that_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what can no longer be promoted gives its room back while the search runs."""
    monkeypatch.chdir(tmp_path)
    spec = load_space(make_world(tmp_path, trials=10, steps=40, pruner="halving", slots=2))
    folder, cache = Path(spec.run.output) / spec.study, tmp_path / "cache"
    usage = shutil.disk_usage

    def filling(path: Any) -> Any:  # the disk's answer, not ours: full once a trial has written its state
        real = usage(path)
        return real._replace(free=LEAST_FREE_BYTES - (1 << 20)) if slot_folder(folder, 0).is_dir() else real

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", filling)
        patch.setattr(disk, "_SECONDS_BETWEEN_LOOKS", 0.0)
        with pytest.raises(InterruptedSearch, match=r"only 1023 MiB free at .* of 1024 MiB needed.* nothing is lost"):
            run_sweep(spec, cache)
    assert slot_folder(folder, 0).is_dir(), "what it had begun is kept"
    slot_folder(folder, 99).mkdir()
    watch = Watch(folder)
    summary = run_sweep(spec, cache, observer=watch)
    assert watch.given_up
    assert watch.most < 10
    assert summary.counts["COMPLETE"] + summary.counts["PRUNED"] == 10
    assert not (folder / "slots").exists()


@pytest.mark.parametrize(("size", "free", "is_short"), [(1, 1 << 30, False), (600 << 20, 1 << 30, True)])
def test_low_water_grows_with_the_slot_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, free: int, is_short: bool
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    slot_folder(tmp_path, 3).mkdir(parents=True)
    with (slot_folder(tmp_path, 3) / "params").open("wb") as file:
        file.truncate(size)
    moments = iter([0.0, 0.0, 1.0, 60.0])
    watch = DiskWatch(tmp_path, workers=1, clock=lambda: next(moments))
    assert [is_stopped(watch, [3, 4]) for _ in range(3)] == [is_short, False, is_short], "not looked up every time"


def is_stopped(watch: DiskWatch, live: Iterable[int]) -> bool:
    return watch.shortage(live) is not None
