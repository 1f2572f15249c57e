"""A trial over two processes follows the same curve as in one, and leaves the same adapter, which PEFT loads."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, multiprocessing
from training_cases import bench_with, host_settings, run, trial_spec

from automl.training.bench import HostSettings
from automl.training.export import evaluate_export
from automl.training.sharded import ShardedTrial
from automl.training.solo import SoloTrial, train
from automl.trial import TrialSpec
from tests.databases import free_port

pytestmark = pytest.mark.slow

SPECS = {
    "completion": trial_spec(1, steps=6, evaluate_every=2, dropout=0.0, target="all-linear", batch_size=5, clip=0.05),
    "classification": trial_spec(2, steps=6, evaluate_every=2, dropout=0.0, batch_size=1),
}


def peer(rank: int, port: int, settings: dict[str, HostSettings], results: Path) -> None:
    """One process of two: the curves of all trials, written down."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    curves = {}
    for name, each in settings.items():
        trial = ShardedTrial(SPECS[name], each)
        share = sum(parameter.to_local().numel() for parameter in trial.model.parameters())
        whole = sum(parameter.numel() for parameter in trial.model.parameters())
        curves[name] = {"share": share / whole, "curve": [asdict(item) for item in trial.train()]}
    torch.save(curves, results / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostSettings]:
    places = {name: tmp_path_factory.mktemp(name) for name in SPECS}
    return {
        "completion": host_settings(places["completion"], architecture="llama", kind="causal-lm"),
        "classification": host_settings(places["classification"]),
    }


@pytest.fixture(scope="module")
def sharded(settings: dict[str, HostSettings], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """What each of the two processes says."""
    results = tmp_path_factory.mktemp("results")
    multiprocessing.spawn(peer, (free_port(), settings, results), nprocs=2)
    return [torch.load(results / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SPECS)
def test_losses_are_those_of_one_process(
    settings: dict[str, HostSettings], sharded: list[dict[str, dict]], name: str
) -> None:
    alone = run(bench_with(settings[name]), SPECS[name])
    for process in sharded:
        assert process[name]["share"] == pytest.approx(0.5, abs=0.05)
        curve = process[name]["curve"]
        assert [(item["step"], item["tokens"]) for item in curve] == [(item.step, item.tokens) for item in alone]
        for item, expected in zip(curve, alone, strict=True):
            assert item["metrics"]["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)
    assert sharded[0][name]["curve"] == sharded[1][name]["curve"]


@pytest.mark.parametrize("name", SPECS)
def test_the_adapter_is_whole_and_reproduces_the_loss(
    settings: dict[str, HostSettings], sharded: list[dict[str, dict]], name: str
) -> None:
    last = sharded[0][name]["curve"][-1]
    folder = Path(last["adapter"])
    tensors = load_file(folder / "adapter_model.safetensors")
    expected = trained_alone(settings[name], SPECS[name])
    assert sorted(map(torch.Tensor.numel, tensors.values())) == sorted(map(torch.Tensor.numel, expected.values()))
    measured = evaluate_export(folder, replace(settings[name], output=str(folder)))
    assert measured["loss"] == pytest.approx(last["metrics"]["loss"], rel=1e-5)


def trained_alone(settings: HostSettings, spec: TrialSpec) -> dict[str, torch.Tensor]:
    trial = SoloTrial(replace(spec, steps=spec.evaluate_every), bench_with(settings))
    generator = train(trial)
    next(generator)
    tensors = dict(trial.snapshot().params)
    generator.close()
    return tensors
