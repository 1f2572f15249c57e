"""A trial that is worth its best checkpoint: both hosts keep it on disk, export it, and end what trains on for nothing.

The tiny models learn 12 rows by heart within a few steps, so that the loss on other rows rises again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from automl.packed.host import PackedHost
from automl.training.checkpoint import KEPT
from automl.trial import Measurement, TrialSpec
from automl.trial_folders import slot_folder
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload
from tests.packed.test_host import curve, host, run

LEARNS_BY_HEART: dict[str, Any] = {"rank": 8, "batch_size": 12, "learning_rate": 2e-2, "target": "all-linear"}
OVERFITS = replace(spec(0, steps=24, **LEARNS_BY_HEART), evaluate_every=2, best_by="loss")
NEVER = replace(spec(2, steps=24, rank=4, batch_size=12, learning_rate=1e-12), evaluate_every=2, best_by="loss")


def small(output: Path, *, is_judged_by_heart: bool = False, ahead: bool = False) -> PackedHost:
    """A host with a dozen rows to learn and a dozen others, or the same, to be judged on."""
    packed = host(output, tiny_model("bert"), ahead=ahead)
    load = workload()
    learnt = load.train_rows[:12]
    judges = learnt if is_judged_by_heart else load.evaluation_rows
    packed.trainer.work_on(replace(load, train_rows=learnt, evaluation_rows=judges))
    return packed


def trained(output: Path, *trials: TrialSpec, is_judged_by_heart: bool = False) -> dict[int, list[Measurement]]:
    packed = small(output, is_judged_by_heart=is_judged_by_heart)
    for trial in trials:
        assert packed.open(trial) == ()
    return run(packed)


def losses(measurements: Sequence[Measurement]) -> dict[int, float]:
    return {item.step: item.metrics["loss"] for item in measurements}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Measurement]]:
    """A trial to its last step that it would have been better to end before."""
    return trained(tmp_path_factory.mktemp("whole"), OVERFITS)


def test_an_overfitting_trial_is_worth_its_best_evaluation(whole: dict[int, list[Measurement]]) -> None:
    found = losses(whole[0])
    best = whole[0][-1].best
    assert best is not None
    assert best.step == min(found, key=lambda step: found[step])
    assert 0 < best.step < 20
    assert best.metrics["loss"] == found[best.step] < found[24]
    assert best.reason == ""
    assert [item.best for item in whole[0][:-1]] == [None] * 11  # and its curve goes on
    assert whole[0][-1].worth == best.metrics


def test_one_that_goes_on_improving_is_not_ended(tmp_path: Path) -> None:
    improves = replace(OVERFITS, number=1, early_stopping=True)
    found = trained(tmp_path, improves, is_judged_by_heart=True)[1]
    best = found[-1].best
    assert best is not None
    assert (found[-1].step, best.step, best.metrics, best.reason) == (24, 24, found[-1].metrics, "")


def test_what_is_exported_is_the_best_checkpoint(tmp_path: Path, whole: dict[int, list[Measurement]]) -> None:
    best = whole[0][-1].best
    assert best is not None
    short = trained(tmp_path, replace(OVERFITS, best_by="", stop_after=best.step))[0]
    assert short[-1].step == best.step
    theirs, ours = (read_all(Path(str(item.adapter))) for item in (short[-1], whole[0][-1]))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_trial_ends_itself_with_the_value_it_would_have_had(
    tmp_path: Path, whole: dict[int, list[Measurement]]
) -> None:
    ending = [replace(trial, early_stopping=True) for trial in (OVERFITS, NEVER)]
    found = trained(tmp_path, *ending)
    best, undisturbed = found[0][-1].best, whole[0][-1].best
    assert best is not None
    assert undisturbed is not None
    assert (best.step, best.metrics) == (undisturbed.step, undisturbed.metrics)
    assert best.reason == f"overfits since step {best.step}"
    assert found[0][-1].step < 24
    assert curve(found[0]) == curve(whole[0])[: len(found[0])]
    assert found[0][-1].adapter is not None
    assert found[2][-1].step == 8
    assert found[2][-1].best is not None
    assert found[2][-1].best.reason == "flat since step 2"


def test_a_host_that_dies_anywhere_is_continued_to_the_same_end(tmp_path: Path) -> None:
    ending = replace(OVERFITS, early_stopping=True, hyper=replace(OVERFITS.hyper, dropout=0.1))
    undisturbed = trained(tmp_path / "whole", ending)[0]
    output, attempt, known = tmp_path / "killed", 0, []
    while not known or known[-1].best is None:  # every measurement is made by a host of its own
        attempt += 1
        packed = small(output)
        known = list(packed.open(replace(ending, attempt=attempt)))
        assert len(known) == attempt - 1
        assert len(list(slot_folder(output, 0).glob("step-*"))) <= KEPT + 2
        known += [item for item in packed.advance() if isinstance(item, Measurement)]
    assert curve(known) == curve(undisturbed)
    assert known[-1].best == undisturbed[-1].best
    assert [item.training_loss for item in known] == [item.training_loss for item in undisturbed]
    again = small(output)
    told = again.open(replace(ending, attempt=attempt + 1))
    assert told[-1] == known[-1]
    assert again.advance() == []  # it is over, although steps are left


def test_a_lost_best_checkpoint_costs_its_value_only(tmp_path: Path) -> None:
    packed = small(tmp_path)
    packed.open(OVERFITS)
    seen: list[Measurement] = []
    while len(seen) < 11:
        seen += [item for item in packed.advance() if isinstance(item, Measurement)]
    best = min(seen, key=lambda item: item.metrics["loss"]).step
    shutil.rmtree(slot_folder(tmp_path, 0) / f"step-{best:08d}")
    (last,) = packed.advance()
    assert isinstance(last, Measurement)
    assert last.best is not None
    assert (last.best.step, last.best.metrics) == (24, last.metrics)


def test_measured_on_few_rows_it_is_measured_again_on_all(tmp_path: Path, whole: dict[int, list[Measurement]]) -> None:
    grid = tuple((step, 3) for step in range(2, 24, 2))
    found = trained(tmp_path, replace(OVERFITS, evaluations=(*grid, (24, 12))))[0]
    best = found[-1].best
    assert best is not None
    named = min(found[:-1], key=lambda item: item.metrics["loss"])
    assert best.step in (named.step, 24)
    assert (
        best.metrics["loss"] == losses(whole[0])[best.step] == min(losses(whole[0])[named.step], losses(whole[0])[24])
    )
