"""The packed host with the real slot files: durable before it speaks, resumable anywhere, one format with solo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from automl import durable
from automl.errors import CheckpointError
from automl.packed.convert import read_adapter
from automl.packed.host import PackedHost
from automl.packed.trainer import PackedTrainer
from automl.training.checkpoint import SlotFolder
from automl.training.runtime import Runtime
from automl.training.solo import SoloTrial
from automl.training.state import SlotRecord, TrainState
from automl.trial import Measurement, StopReason, TrialSpec
from automl.trial_folders import slot_folder
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload

TRIALS = [
    spec(0, rank=4, target="qv", batch_size=2, learning_rate=3e-3, steps=8),
    spec(1, rank=8, dropout=0.1, batch_size=4, learning_rate=3e-3, steps=8),
    spec(2, rank=3, dropout=0.2, target="mlp", batch_size=8, learning_rate=3e-3, steps=8),
]
TRIALS = [replace(trial, evaluate_every=3) for trial in TRIALS]


def slot(output: Path, trial: TrialSpec) -> SlotFolder:
    settings = {"seed": trial.seed, "rank": trial.hyper.rank}
    return SlotFolder(slot_folder(output, trial.number), attempt=trial.attempt, identity=settings)


def host(output: Path, model: nn.Module, kind: str = "classification", **options: Any) -> PackedHost:
    trainer = PackedTrainer(model, workload(kind))

    def export(trial: TrialSpec, measurement: Measurement) -> str:
        folder = output / "adapters" / str(trial.number)
        with durable.sealed_folder(folder, {"metrics": dict(measurement.metrics)}) as draft:
            trainer.export(trial.number, draft, base=str(output / "backbone"))
        return str(folder)

    return PackedHost(
        trainer,
        **{"capacity": 3, "majorities": [{}]} | options,
        files=lambda trial: slot(output, trial),
        discard=lambda trial: durable.remove_folder(slot_folder(output, trial)),
        export=export,
    )


def run(packed: PackedHost) -> dict[int, list[Measurement]]:
    """Measurements of all residents to the end."""
    curves: dict[int, list[Measurement]] = {}
    while events := packed.advance():
        for event in events:
            assert isinstance(event, Measurement), event
            curves.setdefault(event.trial, []).append(event)
    return curves


def curve(measurements: list[Measurement]) -> list[tuple[int, Mapping[str, float], int]]:
    return [(measurement.step, measurement.metrics, measurement.tokens) for measurement in measurements]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Measurement]]:
    packed = host(tmp_path_factory.mktemp("undisturbed"), tiny_model("bert"))
    for trial in TRIALS:
        assert packed.open(trial) == ()
    return run(packed)


def test_a_cohort_reports_together_on_the_grid(undisturbed: dict[int, list[Measurement]]) -> None:
    assert list(undisturbed) == [0, 1, 2]
    assert all([item.step for item in items] == [3, 6, 8] for items in undisturbed.values())
    assert all(item.adapter is None for items in undisturbed.values() for item in items[:-1])
    assert all(items[-1].adapter for items in undisturbed.values())


def test_a_host_that_dies_is_continued_by_another(tmp_path: Path, undisturbed: dict[int, list[Measurement]]) -> None:
    first = host(tmp_path, tiny_model("bert"))
    for trial in TRIALS:
        first.open(trial)
    first.advance()
    first.trainer.round(list(first.trainer.members.values()))  # lost with the process

    second = host(tmp_path, tiny_model("bert"), capacity=2)
    replayed = {trial.number: second.open(replace(trial, attempt=2)) for trial in TRIALS[:0:-1]}
    assert {number: [item.step for item in items] for number, items in replayed.items()} == {1: [3], 2: [3]}
    for number, items in run(second).items():
        assert curve([*replayed[number], *items]) == curve(undisturbed[number])
    with pytest.raises(CheckpointError, match="superseded"):
        first.advance()


def test_a_checkpoint_has_no_metrics_and_is_continued_like_a_measurement(
    tmp_path: Path, undisturbed: dict[int, list[Measurement]]
) -> None:
    saved = [replace(trial, checkpoint_every=2) for trial in TRIALS]
    first = host(tmp_path, tiny_model("bert"))
    for trial in saved:
        first.open(trial)
    assert all((item.step, item.metrics) == (2, {}) for item in first.advance() if isinstance(item, Measurement))

    second = host(tmp_path, tiny_model("bert"))
    replayed = {trial.number: second.open(replace(trial, attempt=2)) for trial in saved}
    for number, items in run(second).items():
        whole = [*replayed[number], *items]
        assert [item.step for item in whole] == [2, 3, 4, 6, 8]
        assert curve([item for item in whole if item.metrics]) == curve(undisturbed[number])


def test_a_parked_trial_costs_a_file_and_goes_on_later(
    tmp_path: Path, undisturbed: dict[int, list[Measurement]]
) -> None:
    packed = host(tmp_path, tiny_model("bert"))
    for trial in TRIALS:
        packed.open(trial)
    seen = list(packed.advance())
    packed.park(1)
    assert set(packed.trainer.members) == {0, 2}
    packed.advance()
    assert packed.open(TRIALS[1]) == tuple(event for event in seen if event.trial == 1)

    assert curve([*seen[1:2], *run(packed)[1]]) == curve(undisturbed[1])  # type: ignore[list-item]
    packed.close(0)
    assert not slot_folder(tmp_path, 0).exists()
    assert slot_folder(tmp_path, 1).exists()


@pytest.mark.parametrize(("name", "kind"), [("bert", "classification"), ("gpt2", "causal-lm")])
def test_a_slot_moves_between_the_solo_and_the_packed_trainer(tmp_path: Path, name: str, kind: str) -> None:
    load, trial = workload(kind), TRIALS[2]
    runtime = Runtime(
        model=tiny_model(name, kind=kind),
        tokenizer=load.tokenizer,
        task=load.task,
        train_rows=load.train_rows,
        evaluation_rows=load.evaluation_rows,
        device=torch.device("cpu"),
    )
    _, metrics = solo_to(SoloTrial(trial, runtime), 8)

    packed = host(tmp_path, tiny_model(name, kind=kind), kind)
    packed.open(trial)
    packed.advance()
    record = slot(tmp_path, trial).load()
    assert record is not None
    assert record.state.step == 3
    files = slot(tmp_path, replace(trial, attempt=2))
    files.claim()
    state, _ = solo_to(SoloTrial(trial, runtime, record.state), 6)
    files.save(SlotRecord(state=state, measurements=record.measurements))
    packed.shutdown()

    again = host(tmp_path, tiny_model(name, kind=kind), kind)
    again.open(replace(trial, attempt=3))
    (last,) = run(again)[2]
    assert last.metrics == pytest.approx(metrics, rel=1e-6)


def solo_to(trial: SoloTrial, step: int) -> tuple[TrainState, Mapping[str, float]]:
    """Train alone up to this step; returns the state and the metrics there."""
    trial.attach()
    try:
        while trial.step < step:
            trial.take_step()
        return trial.snapshot(), trial.measure().metrics
    finally:
        trial.detach()


@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "classification"), ("roberta", "classification"), ("gpt2", "causal-lm")]
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
def test_plain_peft_loads_the_adapter_and_reproduces_the_metrics(tmp_path: Path, name: str, kind: str) -> None:
    packed = host(tmp_path, tiny_model(name, kind=kind), kind)
    for trial in TRIALS:
        packed.open(trial)
    for number, items in run(packed).items():
        last = items[-1]
        assert last.adapter is not None
        assert durable.verify_folder(Path(last.adapter))["metrics"] == last.metrics
        plain = PeftModel.from_pretrained(tiny_model(name, kind=kind), last.adapter).eval()
        assert plain.peft_config["default"].r == TRIALS[number].hyper.rank
        load = workload(kind)
        with torch.no_grad():
            batches = load.evaluation_batches(load.evaluation_rows, 64, torch.device("cpu"))
            assert load.task.evaluate(plain, batches, load.tokenizer) == pytest.approx(last.metrics, rel=1e-6)
        state = packed.trainer.snapshot(number)
        back = read_adapter(Path(last.adapter), list(state.params))
        assert all(torch.equal(back[key], state.params[key]) for key in state.params)


def test_an_adapter_of_other_layers_is_refused(tmp_path: Path) -> None:
    packed = host(tmp_path, tiny_model("bert"))
    for trial in TRIALS[:2]:
        packed.open(trial)
    adapter = run(packed)[0][-1].adapter
    assert adapter is not None
    with pytest.raises(CheckpointError, match="tensors are missing or unknown"):
        read_adapter(Path(adapter), list(packed.trainer.snapshot(1).params))


def test_damaged_slot_files_fail_the_trial_and_no_other(tmp_path: Path) -> None:
    first = host(tmp_path, tiny_model("bert"))
    for trial in TRIALS[:2]:
        first.open(trial)
    first.advance()
    for file in slot_folder(tmp_path, 0).glob("step-*/params.safetensors"):
        file.write_bytes(b"x")
    second = host(tmp_path, tiny_model("bert"))
    for trial in TRIALS[:2]:
        second.open(replace(trial, attempt=2))

    (failure,) = second.advance()
    assert (failure.trial, getattr(failure, "reason", None)) == (0, StopReason.ERROR)
    assert not slot_folder(tmp_path, 0).exists()
    assert [item.step for item in run(second)[1]] == [6, 8]


def test_a_full_host_refuses_another_trial(tmp_path: Path) -> None:
    packed = host(tmp_path, tiny_model("bert"), capacity=1)
    packed.open(TRIALS[0])
    with pytest.raises(ValueError, match="all 1 slots of the host are taken"):
        packed.open(TRIALS[1])


def test_the_baseline_is_the_majority_class_or_the_bare_backbone(tmp_path: Path) -> None:
    packed = host(tmp_path, tiny_model("bert"))
    assert packed.baseline().keys() == {"loss", "accuracy", "macro_f1", "mcc"}
    assert host(tmp_path, tiny_model("bert"), majorities=[{"accuracy": 0.5}]).baseline() == {"accuracy": 0.5}
    assert packed.advance() == []
