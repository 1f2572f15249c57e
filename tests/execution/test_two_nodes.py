"""A search over two machines of which one goes away: it goes on with what is left, and nothing is lost or repeated."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from automl.errors import ResourceError
from automl.execution.dispatch import Dispatcher
from automl.execution.ray_tune import RayExecutor
from automl.space.spec import SearchSettings
from automl.testing.formula import FormulaHost
from tests.execution.scripted import ScriptedStudy
from tests.faults.cluster import RayCluster
from tests.faults.search import open_search, undisturbed, violations
from tests.formula import MeetingHost

pytestmark = pytest.mark.ray

SETTINGS = SearchSettings(
    sampler="random",
    pruner="peer",
    pruner_options={"first_rung": 1},
    trials=14,
    steps=20,
    evaluate_every=2,
    seed=11,
)
_BEFORE = 12
"""Measurements, some from either node, after which one node is killed."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(nodes=2) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.variables.items():
            patch.setenv(name, value)
        yield cluster


def ledger(folder: Path) -> list[tuple[int, int, int]]:
    """(trial, step, process) of every measurement that was acknowledged to a worker."""
    path = folder / "ledger"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(trial, step, pid) for trial, _, step, _, pid in map(json.loads, lines)]


def test_killing_a_node_loses_nothing(cluster: RayCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="automl")
    second = cluster.nodes[1]
    on_second: set[int] = set()

    def kill_when_both_train() -> None:
        rows = ledger(tmp_path)
        if len(rows) < _BEFORE or on_second:
            return
        pids = {pid for *_, pid in rows}
        if len(pids) == 2:
            on_second.update(pids & second.pids())
            second.kill()

    build_host = functools.partial(
        MeetingHost, str(tmp_path / "slots"), capacity=2, step_seconds=0.05, ledger=str(tmp_path / "ledger")
    )
    with (
        RayExecutor(workers=2, address=cluster.address, folder=tmp_path / "tune") as executor,
        open_search(tmp_path, SETTINGS) as opened,
    ):
        executor.run(Dispatcher(opened.study, on_exchange=kill_when_both_train), build_host)
        opened.study.close()
        trials = opened.study.optuna.get_trials()
        stored = {number.number: opened.store.measurements(number.number) for number in trials}
        attempts = opened.store.attempts()

    assert violations(tmp_path, SETTINGS, finished=True) == []
    assert len(on_second) == 1, "one of the two workers was on the node that was killed"
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len(trials) == SETTINGS.trials
    for trial in trials:
        curve = [(item.step, item.metrics["loss"]) for item in stored[trial.number]]
        assert curve == undisturbed(SETTINGS, trial.number, trial.params)[: len(curve)]
        assert curve == sorted(trial.intermediate_values.items())
    # What was acknowledged before is not trained again, and the node's trials went on elsewhere.
    rows = ledger(tmp_path)
    assert len({(trial, step) for trial, step, _ in rows}) == len(rows)
    moved = {trial for trial, _, pid in rows if pid in on_second} & {item.trial for item in attempts if item.number > 1}
    assert moved
    assert len(attempts) <= SETTINGS.trials + 2
    assert any("died and is started again" in record.getMessage() for record in caplog.records)


def test_what_the_cluster_can_never_offer_is_refused_not_waited_for(cluster: RayCluster, tmp_path: Path) -> None:
    refused = pytest.raises(
        ResourceError, match=r"a worker needs 1 CPUs and 64 GPUs on one node; the nodes of the cluster have \d"
    )
    with RayExecutor(workers=1, gpus_per_worker=64, address=cluster.address, folder=tmp_path) as executor, refused:
        executor.run(Dispatcher(ScriptedStudy(1)), functools.partial(FormulaHost, str(tmp_path)))


def test_a_node_that_does_not_see_the_folder_is_one_clear_error(cluster: RayCluster, tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("hiding a folder from a process takes root and unshare")
    output = tmp_path / "output"
    output.mkdir()
    cluster.add(cpus=2, blind=output)
    build_host = functools.partial(FormulaHost, str(tmp_path / "slots"))
    unseen = rf"^run.output: node {socket.gethostname()} does not see {output}/study; it must lie on storage"
    with (
        RayExecutor(workers=1, cpus_per_worker=2, address=cluster.address, folder=output / "study") as executor,
        pytest.raises(ResourceError, match=unseen),
    ):
        executor.run(Dispatcher(ScriptedStudy(1)), build_host)
