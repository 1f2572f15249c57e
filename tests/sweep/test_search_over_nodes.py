"""A search and its verification, with a real model, over two machines; one has neither model nor data of its own."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from automl.setup.executors import Executors
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.base import Attempt
from automl.storage.sql import open_database
from automl.storage.verification import VerificationStore
from automl.sweep.run import Observer, run_sweep
from automl.verify.protocol import SECONDS
from automl.verify.run import VerifyOptions, verify_study
from tests.faults.cluster import RayCluster
from tests.sweep.tiny_world import make_world
from tests.verify.acting import On, acting

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.full  # tests/execution/test_two_nodes has the cluster, tests/sweep/test_artifacts_elsewhere the copies
@pytest.mark.skipif(
    bool(os.geteuid()) or not shutil.which("unshare"), reason="hiding a folder from a process takes root and unshare"
)
def test_a_node_without_model_and_data_trains_the_same_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir()
    spec = load_space(make_world(private, trials=8, steps=10, executor="ray", workers=2, slots=1))
    with RayCluster(nodes=1) as cluster:
        for name, value in cluster.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache-of-the-node"))
        cluster.add(blind=private)
        monkeypatch.delenv("AUTOML_CACHE")
        over_nodes = replace(
            spec,
            storage_url=f"sqlite:///{tmp_path / 'nodes.db'}",
            artifacts=f"file://{shared / 'depot'}",
            run=replace(spec.run, address=cluster.address, output=shared / "nodes"),
        )
        fetched = tmp_path / "cache-of-the-node" / "data"
        with Executors() as executors:
            observer = WaitsForBoth(over_nodes.storage_url)
            run_sweep(over_nodes, private / "cache", observer=observer, executors=executors)
            assert fetched.is_dir(), "the node has fetched the data"
            assert not list(fetched.glob("*/test")), "but no test rows while it searched"
            driver = ray_drivers()
            with acting(On("1 of ", lambda: wait_for(fetched, "*.with-test/test"))):  # the faster worker may do it all
                verified = verify(over_nodes, private / "cache", executors)
            assert ray_drivers() == driver, "the verification has joined the cluster anew"
            assert len(driver) == 1
        assert not ray_drivers()
    here = replace(
        spec,
        storage_url=f"sqlite:///{tmp_path / 'here.db'}",
        run=replace(spec.run, executor="inline", workers=1, output=shared / "here"),
    )
    run_sweep(here, private / "cache")
    assert verify(here, private / "cache") == verified

    assert {attempt.worker for attempt in attempts(over_nodes.storage_url)} == {0, 1}
    assert list((tmp_path / "cache-of-the-node" / "models").iterdir()), "the node has fetched the model"
    assert curves(over_nodes.storage_url) == curves(here.storage_url)


class WaitsForBoth(Observer):
    """Gives the slower worker time to begin before the other one has trained everything."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._both = False

    def tick(self) -> None:
        self._both = self._both or {attempt.worker for attempt in attempts(self._url)} == {0, 1}
        if not self._both:
            time.sleep(2)


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 240
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.1)


def ray_drivers() -> list[int]:
    """Processes of this one that hold a connection to the cluster."""
    mine = psutil.Process().children()
    return [each.pid for each in mine if "automl.execution.ray_driver" in "".join(each.cmdline())]


def verify(spec: SweepSpec, cache: Path, executors: Executors | None = None) -> list[tuple[str, int, str, float]]:
    """Scores of a verification, but for the time each training took."""
    with open_database(spec.storage_url, create=False) as database:
        found = verify_study(database, spec, cache, VerifyOptions(seeds=4, finalists=1), executors=executors)
        stored = VerificationStore(database, spec.study).scores(found.number)
    return [(each.arm, each.seed, each.metric, each.value) for each in stored if each.metric != SECONDS]


def attempts(url: str) -> list[Attempt]:
    with open_database(url, create=False) as database:
        return database.store("tiny").attempts()


def curves(url: str) -> dict[tuple[int, int], dict[str, float]]:
    with open_database(url, create=False) as database:
        return {(item.trial, item.step): dict(item.metrics) for item in database.store("tiny").measurements()}
