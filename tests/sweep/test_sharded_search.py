"""A search whose trials Ray Train shares out over two processes: the results of one process, also after a kill."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import psutil
import pytest
from peft import PeftModel

from automl.errors import ResourceError
from automl.space.load import load_space
from automl.space.spec import RunSettings
from automl.sweep.layout import Layout, choose_layout
from automl.sweep.plan import make_plan
from automl.sweep.run import Observer, run_sweep
from automl.sweep.summary import Summary
from tests.sweep.tiny_world import make_world


def sharded(space: Path) -> Path:
    text = space.read_text(encoding="utf-8")
    space.write_text(text.replace("precision: fp32", "precision: fp32, shards: 2"), encoding="utf-8")
    return space


def search(space: Path, cache: Path, observer: Observer) -> Summary:
    before = Path.cwd()
    os.chdir(space.parent)
    try:
        return run_sweep(load_space(space), cache, observer=observer)
    finally:
        os.chdir(before)


def losses(folder: Path) -> list[tuple[int, int, float]]:
    with sqlite3.connect(folder / "automl.db") as connection:
        return connection.execute(
            "SELECT trial, step, value FROM automl_metric_values WHERE metric = 'loss' ORDER BY trial, step"
        ).fetchall()


class Killer(Observer):
    """Kills a process of the group when the first trial has made its first measurement."""

    def __init__(self) -> None:
        self.heard = 0
        self.killed: list[int] = []

    def tick(self) -> None:
        self.heard += 1
        if self.heard == 2:
            self.killed = [each.pid for each in family("ray::RayTrainWorker")][-1:]
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


def family(title: str) -> list[psutil.Process]:
    """Processes started from here whose command line begins so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_whose_group_loses_a_process_ends_as_one_that_is_not_shared_out(
    tmp_path: Path, shared_cache: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    search(make_world(alone, trials=2, steps=10), shared_cache, Observer())
    killer = Killer()
    summary = search(sharded(make_world(together, trials=2, steps=10, executor="ray")), shared_cache, killer)
    assert killer.killed
    assert not family("ray::")
    expected = losses(alone)
    found = losses(together)
    assert [row[:2] for row in found] == [row[:2] for row in expected] == [(0, 5), (0, 10), (1, 5), (1, 10)]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], rel=1e-5)
    assert summary.best is not None
    spec = load_space(together / "space.yaml")
    plan = make_plan(spec, shared_cache, probe=True)
    assert plan.probe is None
    assert "1 workers x 2 processes x 1 threads on cpu" in "\n".join(plan.lines())
    assert_loads_in_peft(together / "automl-output" / "tiny" / "best", together / "model")


def assert_loads_in_peft(adapter: Path, model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    loaded = PeftModel.from_pretrained(base, str(adapter))
    updates = [parameter for name, parameter in loaded.named_parameters() if "lora_B" in name]
    assert updates
    assert all(bool(update.any()) for update in updates)


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def test_a_worker_takes_as_many_cores_as_there_are_shards() -> None:
    run = RunSettings(device="cpu", shards=2, address="head:6379")
    found = choose_layout(run, trials=9)
    workers = max(1, CORES // 2)
    assert found == Layout(workers=workers, threads=max(1, CORES // (2 * workers)), device="cpu", shards=2, cores=CORES)


@pytest.mark.parametrize("run", [{"shards": CORES + 1}, {"shards": 2, "workers": CORES}])
def test_more_shards_than_devices_are_refused(run: dict[str, int]) -> None:
    with pytest.raises(ResourceError, match=r"run\.shards: .* this machine has"):
        choose_layout(RunSettings(device="cpu", **run), trials=99)
