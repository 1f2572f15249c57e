"""A host over two processes gives the curves of one process, the same adapters and importances, and goes on exactly."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from automl.training.checkpoint import slot_files
from automl.training.export import evaluate_export
from automl.training.host import SoloHost, build_solo_host
from automl.training.runtime import HostSettings, load_model
from automl.training.sharded import FullySharded, build_sharded_host, shard
from automl.trial import Measurement, TrialFailure
from tests.training.sharded_cases import in_two_processes, join, leave, train
from tests.training.training_cases import host_settings, trial_spec

pytestmark = pytest.mark.slow

PLAIN = trial_spec(1, steps=12, evaluate_every=4, dropout=0.0, target="all-linear", batch_size=5, clip=0.05)
FEW_ROWS = trial_spec(2, steps=6, evaluate_every=2, dropout=0.0, batch_size=1)
WITH_DROPOUT = trial_spec(3, steps=6, evaluate_every=2)
WILD = trial_spec(4, steps=6, evaluate_every=2, dropout=0.0, learning_rate=1e30)
GETS_WORSE = trial_spec(5, steps=8, evaluate_every=2, dropout=0.0, learning_rate=0.5, schedule="constant")
BEST = replace(GETS_WORSE, best_by="loss")

KINDS = ("completion", "classification")


def peer(rank: int, port: int, settings: dict[str, HostSettings], results: Path) -> None:
    """One process of two: what it says of every case."""
    join(rank, port)
    said: dict[str, Any] = {}
    for kind, each in settings.items():
        host = build_sharded_host(each)
        said[f"{kind} baseline"] = dict(host.baseline())
        said[f"{kind} share"] = share_of(each)
        said[kind] = [asdict(item) for item in train(host, PLAIN)]
    said["few rows"] = [asdict(item) for item in train(host, FEW_ROWS)]
    said["best"] = [asdict(item) for item in train(host, BEST)]
    said["wild"] = [asdict(item) for item in train(host, WILD)]
    said["with dropout"] = [asdict(item) for item in train(host, WITH_DROPOUT)]
    host.close(WITH_DROPOUT.number)
    distributed.barrier()
    said["interrupted"] = [asdict(item) for item in train(host, WITH_DROPOUT, interrupted=True)]
    leave(said, results)


def share_of(settings: HostSettings) -> float:
    model = load_model(settings)
    shard(model, FullySharded(torch.device("cpu")).mesh)
    parameters = list(model.parameters())
    return sum(each.to_local().numel() for each in parameters) / sum(each.numel() for each in parameters)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostSettings]:
    places = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    return {
        "completion": host_settings(places["completion"], architecture="llama", kind="causal-lm", shards=2),
        "classification": host_settings(places["classification"], shards=2),
    }


@pytest.fixture(scope="module")
def sharded(settings: dict[str, HostSettings], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes says."""
    return in_two_processes(peer, settings, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def alone(settings: dict[str, HostSettings], tmp_path_factory: pytest.TempPathFactory) -> dict[str, SoloHost]:
    """Hosts of one process, over the same models and data."""
    return {
        kind: build_solo_host(replace(each, shards=1, output=str(tmp_path_factory.mktemp(kind))))
        for kind, each in settings.items()
    }


def assert_same_curve(said: list[dict[str, Any]], expected: list[Measurement | TrialFailure]) -> None:
    assert [(item["step"], item["tokens"]) for item in said] == [(item.step, item.tokens) for item in expected]
    for item, other in zip(said, expected, strict=True):
        assert item["metrics"]["loss"] == pytest.approx(other.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_and_importances_are_those_of_one_process(
    alone: dict[str, SoloHost], sharded: list[dict[str, Any]], kind: str
) -> None:
    expected = train(alone[kind], PLAIN)
    for process in sharded:
        assert process[f"{kind} share"] == pytest.approx(0.5, abs=0.05)
        assert process[f"{kind} baseline"] == pytest.approx(alone[kind].baseline(), rel=1e-5)
        assert_same_curve(process[kind], expected)
    found, known = sharded[0][kind][-1]["importances"], expected[-1].importances
    assert [item["module"] for item in found] == [item.module for item in known]
    for item, other in zip(found, known, strict=True):
        assert item["sensitivity"] == pytest.approx(other.sensitivity, rel=1e-3)
        assert item["relative_update"] == pytest.approx(other.relative_update, rel=1e-4)


def test_a_batch_with_fewer_rows_than_processes(alone: dict[str, SoloHost], sharded: list[dict[str, Any]]) -> None:
    expected = train(alone["classification"], FEW_ROWS)
    for process in sharded:
        assert_same_curve(process["few rows"], expected)


def test_all_processes_see_a_trial_diverge_and_go_on(sharded: list[dict[str, Any]]) -> None:
    for process in sharded:
        assert [item.get("reason") for item in process["wild"]][-1] == "diverged"
        assert process["with dropout"][-1]["step"] == WITH_DROPOUT.steps


def test_a_trial_goes_on_from_its_slot_file_as_if_nothing_had_been(
    settings: dict[str, HostSettings], sharded: list[dict[str, Any]]
) -> None:
    for process in sharded:
        losses = [[item["metrics"]["loss"] for item in process[name]] for name in ("with dropout", "interrupted")]
        assert losses[1] == losses[0]
    kept = slot_files(settings["classification"], WITH_DROPOUT).load()
    assert kept is not None
    assert len(kept.measurements) == 3
    assert kept.state.params.keys() == {key.split("/")[1] for key in kept.state.moments}


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_whole_and_reproduces_the_loss(
    settings: dict[str, HostSettings], alone: dict[str, SoloHost], sharded: list[dict[str, Any]], kind: str
) -> None:
    last = sharded[0][kind][-1]
    folder = Path(last["adapter"])
    mine = load_file(folder / "adapter_model.safetensors")
    theirs = load_file(Path(alone[kind].settings.output) / "adapters" / folder.name / "adapter_model.safetensors")
    assert {name: each.shape for name, each in mine.items()} == {name: each.shape for name, each in theirs.items()}
    measured = evaluate_export(folder, replace(settings[kind], output=str(folder)))
    assert measured["loss"] == pytest.approx(last["metrics"]["loss"], rel=1e-5)


def test_the_best_checkpoint_is_gone_back_to_by_all(
    sharded: list[dict[str, Any]], alone: dict[str, SoloHost], settings: dict[str, HostSettings]
) -> None:
    found = [said["best"][-1]["best"] for said in sharded]
    assert found[0] == found[1]
    last = train(alone["classification"], BEST)[-1]
    assert isinstance(last, Measurement)
    assert last.best is not None
    assert found[0]["step"] == last.best.step < 8
    assert found[0]["metrics"]["loss"] == pytest.approx(last.best.metrics["loss"], abs=1e-3)
    mine, theirs = (Path(each["adapter"]) for each in (asdict(last), sharded[0]["best"][-1]))
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in (mine, theirs)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.allclose(tensors[0][name], tensors[1][name], atol=1e-2) for name in tensors[0])
