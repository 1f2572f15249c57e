"""What a search keeps is also where `storage.artifacts` says, and is found there when the own files are gone."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.errors import CheckpointError, ResourceError
from automl.results.artifacts import STORED
from automl.results.recorded import recorded_spec
from automl.results.summary import Summary
from automl.setup.hosts import at_hand, publish
from automl.setup.machine import Layout
from automl.setup.packing import Packing, host_settings
from automl.setup.prepare import Inputs, prepare
from automl.space.load import load_space
from automl.storage.artifacts import digest_folder
from automl.storage.sql import open_database
from automl.sweep.export import export_trial
from automl.sweep.run import run_sweep
from automl.tasks import make_task
from automl.training.runtime import HostSettings, load_runtime
from tests.sweep.tiny_world import make_world


class World:
    """A finished search in a folder, with artifacts in `depot` beside it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.depot = folder / "depot"
        space = make_world(folder)
        space.write_text(
            f"{space.read_text(encoding='utf-8')}storage: {{artifacts: 'file://{self.depot}'}}\n", encoding="utf-8"
        )
        self.url = f"sqlite:///{folder / 'automl.db'}"
        self.spec = replace(load_space(space), storage_url=self.url)
        self.spec = replace(self.spec, run=replace(self.spec.run, output=folder / "output"))
        self.cache = cache
        self.output = folder / "output" / "tiny"

    def search(self) -> Summary:
        return run_sweep(self.spec, self.cache)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> World:
    world = World(tmp_path_factory.mktemp("world"), shared_cache)
    world.search()
    return world


def stored(world: World) -> Any:
    with open_database(world.url, create=False) as database:
        return database.store("tiny").last_event(STORED)


def test_kept_adapters_report_and_summary_are_there_too(world: World) -> None:
    with sqlite3.connect(world.output.parent.parent / "automl.db") as connection:
        rows = connection.execute(
            "SELECT trial, path, sha256 FROM automl_artifacts WHERE deleted_at IS NULL"
        ).fetchall()
    assert len(rows) == 2
    event = stored(world)
    assert event["url"] == f"file://{world.depot}"
    for trial, path, sha256 in rows:
        entry = event["adapters"][str(trial)]
        assert entry["sha256"] == sha256
        assert digest_folder(world.depot / entry["name"]) == digest_folder(path)
    for name in ("summary.json", "summary.md", "report.html", "report.json", "report.md"):
        assert (world.depot / "tiny" / name).read_bytes() == (world.output / name).read_bytes()
    assert not list(world.depot.rglob(".*"))


def test_the_same_again_stores_nothing_twice(world: World) -> None:
    before = sorted(world.depot.rglob("*"))
    world.search()
    assert sorted(world.depot.rglob("*")) == before
    with open_database(world.url, create=False) as database:
        assert [kind for _, kind, _ in database.store("tiny").events()].count(STORED) == 1


def test_an_adapter_that_is_gone_here_is_exported_from_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOML_CACHE", str(world.cache))
    hidden = world.output.with_name("hidden")
    world.output.rename(hidden)
    try:
        with open_database(world.url, create=False) as database:
            spec = recorded_spec(database, "tiny")
            exported = export_trial(database, spec, tmp_path / "adapter", None, merged=False, check=True)
            assert exported.measured == pytest.approx(exported.recorded, rel=1e-6)
            (weights,) = world.depot.glob(f"tiny/adapters/trial-{exported.trial:05d}-*/adapter_model.safetensors")
            content = weights.read_bytes()
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            with pytest.raises(CheckpointError, match="is damaged: sha256"):
                export_trial(database, spec, tmp_path / "again", exported.trial, merged=False, check=False)
            weights.write_bytes(content)
    finally:
        hidden.rename(world.output)


def test_a_place_that_cannot_be_written_is_refused_before_anything_starts(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spec = replace(world.spec, study="other", artifacts=f"file://{tmp_path / 'file' / 'x'}")
    with pytest.raises(ResourceError, match=r"storage.artifacts: .*cannot write"):
        run_sweep(spec, world.cache)
    with open_database(world.url, create=False) as database:
        assert [row.study for row in database.studies()] == ["tiny"]


@pytest.fixture(scope="module")
def inputs(world: World) -> Inputs:
    return prepare(world.spec, world.cache)


@pytest.fixture
def elsewhere(world: World, inputs: Inputs, tmp_path: Path) -> HostSettings:
    """What a worker is told on a machine on which the driver's paths lead nowhere."""
    layout = Layout(workers=1, threads=1, device="cpu")
    settings = host_settings(world.spec, inputs, layout, Packing(slots=1))
    return replace(
        settings,
        backbone=replace(settings.backbone, path=str(tmp_path / "nowhere" / "model")),
        prepared=replace(settings.prepared, path=tmp_path / "nowhere" / "data"),
    )


def test_a_node_fetches_what_it_lacks_and_then_has_it(
    world: World, inputs: Inputs, elsewhere: HostSettings, tmp_path: Path
) -> None:
    url, cache = f"file://{tmp_path / 'depot'}", tmp_path / "cache"
    publish(elsewhere_from(inputs, elsewhere), url)
    here = at_hand(elsewhere, url, cache)
    assert Path(here.backbone.folder).parent == cache / "models"
    assert here.backbone.path == elsewhere.backbone.path, "adapters name the model as the driver knows it"
    runtime = load_runtime(here)
    assert len(runtime.train_rows) == inputs.prepared.rows["train"]
    assert not (here.prepared.path / "test").exists(), "a search is never given the test rows"
    shutil.rmtree(tmp_path / "depot")
    assert at_hand(elsewhere, url, cache) == here


def elsewhere_from(inputs: Inputs, settings: HostSettings) -> HostSettings:
    """The same settings with the driver's own paths."""
    return replace(settings, backbone=inputs.backbone, prepared=replace(settings.prepared, path=inputs.prepared.path))


def test_test_rows_reach_the_workers_of_a_verification_and_never_those_of_a_search(
    world: World, inputs: Inputs, elsewhere: HostSettings, tmp_path: Path
) -> None:
    url, cache = f"file://{tmp_path / 'depot'}", tmp_path / "cache"
    searching = elsewhere
    verifying = replace(elsewhere, prepared=replace(elsewhere.prepared, rows=inputs.prepared.rows), judged_on="test")
    publish(elsewhere_from(inputs, searching), url)
    with pytest.raises(ResourceError, match=r"there is no finished data/\w+\.with-test"):
        at_hand(verifying, url, cache)
    publish(elsewhere_from(inputs, verifying), url)
    here = at_hand(verifying, url, cache)
    task = make_task(here.task)
    assert list(task.rows(here.prepared, "test")) == list(task.rows(inputs.prepared, "test"))
    # A search on the same node, afterwards, is still given none.
    there = at_hand(searching, url, cache)
    assert there.prepared.path != here.prepared.path
    assert not (there.prepared.path / "test").exists()
    # Nor is a folder without them taken for one with them.
    shutil.rmtree(here.prepared.path / "test")
    shutil.rmtree(tmp_path / "depot")
    with pytest.raises(ResourceError, match="there is no finished data"):
        at_hand(verifying, url, cache)


def test_what_lies_under_the_same_path_is_used_if_it_is_the_same(
    world: World, inputs: Inputs, elsewhere: HostSettings, tmp_path: Path
) -> None:
    settings = replace(elsewhere, backbone=inputs.backbone, prepared=inputs.prepared)
    found = at_hand(settings, None, tmp_path / "cache")
    assert found == replace(settings, proofs=found.proofs)  # what a node found out about packing, it keeps itself
    assert Path(found.proofs).is_relative_to(tmp_path / "cache")
    other = tmp_path / "nowhere" / "model"
    shutil.copytree(inputs.backbone.path, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}), encoding="utf-8")
    missing = rf"node {socket.gethostname()}: the model {other} is not there, or is another; put it there"
    with pytest.raises(ResourceError, match=missing):
        at_hand(replace(settings, backbone=elsewhere.backbone), None, tmp_path / "cache")
    with pytest.raises(ResourceError, match=r"the prepared data \S+ is not there"):
        at_hand(replace(settings, prepared=elsewhere.prepared), None, tmp_path / "cache")
