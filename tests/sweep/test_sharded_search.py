"""A search whose trials Ray Train shares out over two processes: the results of one process, also after a kill."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import psutil
import pytest
from peft import PeftModel

from automl.errors import ResourceError
from automl.results.summary import Summary
from automl.setup.executors import Executors
from automl.setup.machine import Layout, choose_layout
from automl.setup.plan import make_plan
from automl.space.load import load_space
from automl.space.spec import RunSettings
from automl.storage.sql import open_database
from automl.storage.verification import VerificationStore
from automl.sweep.run import Observer, run_sweep
from automl.verify.protocol import SECONDS
from automl.verify.run import VerifyOptions, verify_study
from tests.sweep.tiny_world import make_world


def sharded(space: Path) -> Path:
    text = space.read_text(encoding="utf-8")
    space.write_text(text.replace("precision: fp32", "precision: fp32, shards: 2"), encoding="utf-8")
    return space


def search(space: Path, cache: Path, observer: Observer, executors: Executors | None = None) -> Summary:
    with contextlib.chdir(space.parent):
        return run_sweep(load_space(space), cache, observer=observer, executors=executors)


def losses(folder: Path) -> list[tuple[int, int, float]]:
    with sqlite3.connect(folder / "automl.db") as connection:
        return connection.execute(
            "SELECT trial, step, value FROM automl_metric_values WHERE metric = 'loss' ORDER BY trial, step"
        ).fetchall()


class Killer(Observer):
    """Looks at the group when the first trial has made its first measurement, and kills one of its processes."""

    def __init__(self) -> None:
        self.heard = 0
        self.group: list[psutil.Process] = []
        self.listening: set[str] = set()

    def tick(self) -> None:
        self.heard += 1
        if self.heard == 2:
            self.group = [each for each in family() if title_of(each).startswith("ray::RayTrainWorker")]
            ports = [port for each in self.group for port in each.net_connections("inet") if port.status == "LISTEN"]
            self.listening = {port.laddr.ip for port in ports}
            self.group[-1].kill()


def family() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def title_of(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.full  # tests/training/test_sharded holds curves of two processes against one
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
def test_a_search_whose_group_loses_a_process_ends_as_one_that_is_not_shared_out(
    tmp_path: Path, shared_cache: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    search(make_world(alone, trials=2, steps=10), shared_cache, Observer())
    killer = Killer()
    with Executors() as executors:
        space = sharded(make_world(together, trials=2, steps=10, executor="ray"))
        summary = search(space, shared_cache, killer, executors)
        verified = scores(together, shared_cache, executors)
    assert len(killer.group) == 2
    assert killer.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    deadline = time.monotonic() + 120.0
    while any(title_of(each).startswith("ray::") for each in family()):
        assert time.monotonic() < deadline, "processes of Ray are left"
        time.sleep(0.1)
    expected = losses(alone)
    found = losses(together)
    assert [row[:2] for row in found] == [row[:2] for row in expected] == [(0, 5), (0, 10), (1, 5), (1, 10)]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], rel=1e-5)
    assert summary.best is not None
    spec = load_space(together / "space.yaml")
    plan = make_plan(spec, shared_cache, probe=True)
    assert plan.probe is None
    assert "1 workers x 2 processes x 1 threads on cpu" in "\n".join(plan.lines())
    assert verified == pytest.approx(scores(alone, shared_cache), rel=1e-4)
    assert_loads_in_peft(together / "automl-output" / "tiny" / "best", together / "model")


def scores(folder: Path, cache: Path, executors: Executors | None = None) -> dict[tuple[str, int, str], float]:
    """What a verification of the search scores on the test rows, by arm, seed and metric, but for the time it takes."""
    spec = load_space(folder / "space.yaml")
    with contextlib.chdir(folder), open_database(spec.storage_url, create=False) as database:
        found = verify_study(database, spec, cache, VerifyOptions(seeds=3, finalists=1), executors=executors)
        stored = VerificationStore(database, spec.study).scores(found.number)
    assert found.is_done
    assert len({(score.arm, score.seed) for score in stored}) == 2 * 3
    return {(each.arm, each.seed, each.metric): each.value for each in stored if each.metric != SECONDS}


def assert_loads_in_peft(adapter: Path, model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    loaded = PeftModel.from_pretrained(base, str(adapter))
    updates = [parameter for name, parameter in loaded.named_parameters() if "lora_B" in name]
    assert updates
    assert all(bool(update.any()) for update in updates)


def test_a_plan_tells_the_verification_of_a_sharded_search(tmp_path: Path, shared_cache: Path) -> None:
    space = make_world(tmp_path, trials=2, steps=10, executor="ray", verify=True)
    plain = make_plan(load_space(space), shared_cache, probe=False)
    shared_out = make_plan(load_space(sharded(space)), shared_cache, probe=False)
    assert shared_out.verification_trainings == plain.verification_trainings > 0


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
