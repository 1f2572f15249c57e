"""Bottleneck adapters of a finished search joined by attention: written, loaded in a fresh process, and repeatable."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import automl
from automl import durable, progress
from automl.compose.found import Composed
from automl.compose.run import compose_study
from automl.compose.wanted import Wanted
from automl.errors import CheckpointError, Diverged, InterruptedSearch, ModelError
from automl.execution.stop import StopRequest
from automl.report.recipe import recipe
from automl.results.folders import cache_folder
from automl.results.recorded import GROUND, recorded_spec
from automl.setup.setup import for_one_trial, set_up
from automl.squeeze.recover import FACTORS
from automl.storage.sql import open_database
from automl.training.export import verify_manifest
from automl.training.reload import measure_afresh

MEMBERS = (4, 5)


def own(number: int) -> Path:
    return Path(automl.open_study("others").trials[number].adapter or "")


@pytest.fixture(scope="module")
def joined(world: Path) -> Composed:
    """Two adapters, of 3 and 4 units, in `joined`."""
    study = automl.open_study("others")
    return study.compose(MEMBERS, how="fusion", steps=6, output=world / "joined", show_progress=False)


def test_members_stay_and_attention_is_trained(joined: Composed, world: Path) -> None:
    assert [each.name for each in joined.mixtures] == ["fusion"]
    about = verify_manifest(world / "joined")
    said = about["composed"]
    assert (said["how"], said["steps"]) == ("fusion", 6)
    assert said["learning_rate"] in [pytest.approx(0.01 * factor) for factor in FACTORS]
    order = said["trials"]
    assert sorted(order) == list(MEMBERS)
    assert [each["adapter_size"] for each in said["members"]] == [number - 1 for number in order]
    tensors = load_file(world / "joined/adapter.safetensors")
    assert joined.chosen.parameters == sum(tensor.numel() for tensor in tensors.values())
    for place, number in enumerate(order):
        for name, tensor in load_file(own(number) / "adapter.safetensors").items():
            if ".bottleneck." in name:
                there = tensors.pop(name.replace(".bottleneck.", f".fusion.members.{place}."))
                assert torch.equal(there, tensor)
                assert tensor.abs().max() > 0
            elif not place:
                assert not torch.equal(tensors.pop(name), tensor)  # the best one's head is trained further
    assert {name.partition(".fusion.")[2] for name in tensors} == {"query.weight", "key.weight", "value.weight"}
    for name, tensor in tensors.items():
        if name.endswith("value.weight"):
            apart = (tensor - torch.eye(len(tensor))).abs().max()
            assert 0 < apart < 0.5


def test_a_fresh_process_measures_the_same(joined: Composed, world: Path) -> None:
    made = recipe(str(world / "joined"))
    assert made is not None
    with open_database("sqlite:///automl.db", create=False) as database:
        spec = recorded_spec(database, "others")
        recorded = database.store("others").last_event(GROUND)
    settings = set_up(for_one_trial(spec), cache_folder(), recorded, is_thorough=False).worker_settings()
    (afresh,) = measure_afresh([made.use.splitlines()], settings)
    assert afresh.metrics == pytest.approx(dict(joined.chosen.metrics), rel=1e-6, abs=1e-6)
    assert verify_manifest(world / "joined")["metrics"] == dict(joined.chosen.metrics)
    assert joined.test is not None
    assert joined.test.difference is not None


def test_it_comes_to_the_same_numbers_again(joined: Composed, world: Path) -> None:
    study = automl.open_study("others")
    again = study.compose(MEMBERS[::-1], how=["fusion"], steps=6, output=world / "again", show_progress=False)
    assert again.chosen == joined.chosen
    first, second = (load_file(world / name / "adapter.safetensors") for name in ("joined", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@contextmanager
def changed(number: int, about: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Another adapter in the place of a trial's, sealed as one of ours, until the end of the block."""
    place, kept = own(number), own(number).with_name(f"kept-{number}")
    shutil.move(place, kept)
    try:
        with durable.sealed_folder(place, {**durable.verify_folder(kept), **about}) as draft:
            for path in kept.iterdir():
                if path.suffix != ".safetensors" and path.name != durable.MANIFEST:
                    shutil.copyfile(path, draft / path.name)
            tensors = load_file(kept / "adapter.safetensors")
            save_file({name: change(tensor) for name, tensor in tensors.items()}, draft / "adapter.safetensors")
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.move(kept, place)


def fused(number_of_steps: int = 2) -> Composed:
    study = automl.open_study("others")
    return study.compose(MEMBERS, how="fusion", steps=number_of_steps, show_progress=False)


def test_members_that_do_not_go_together_are_one_line(world: Path) -> None:
    with changed(4, {}, lambda tensor: tensor * torch.inf), pytest.raises(CheckpointError) as found:
        fused()
    assert "trial 4: 'bert.encoder.layer.0.output.dense.bottleneck.down.bias' of its adapter is not finite" in str(
        found.value
    )
    strange = {"backbone": {"fingerprint": "f" * 64}}
    with changed(5, strange, torch.clone), pytest.raises(ModelError, match="only adapters of one model can be mixed"):
        fused()
    with changed(5, {"labels": ["a", "b"]}, torch.clone), pytest.raises(ModelError, match="adapters of one classes"):
        fused()
    said = r"the fusion comes to an end at no learning rate up to 0\.01"
    with (
        changed(4, {}, lambda tensor: tensor * 1e30),
        changed(5, {}, lambda tensor: tensor * 1e30),
        pytest.raises(Diverged, match=said),
    ):
        fused()


class StopsAtTheSecondStep(StopRequest):
    """Asks for an end when a training has told that its first step is done."""

    @property
    def reason(self) -> str | None:
        return "Ctrl-C" if progress.current().endswith("learning rate 0.001, step 1 of 6") else None

    @reason.setter
    def reason(self, value: object) -> None:
        pass


def test_it_is_stopped_within_its_training(world: Path) -> None:
    wanted = Wanted(of=MEMBERS, how=["fusion"], steps=6)
    with open_database("sqlite:///automl.db", create=False) as database:
        spec = recorded_spec(database, "others")
        with pytest.raises(InterruptedSearch, match="nothing was written, the same command starts again"):
            compose_study(database, spec, wanted, world / "stopped", stop=StopsAtTheSecondStep())
    assert not (world / "stopped").exists()
