"""Full fine-tuning with moments in 8 bits: bitsandbytes' own optimizer, stopped as one likes, small, and asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit  # type: ignore[attr-defined]  # it is untyped
from torch import nn
from transformers import AutoModelForSequenceClassification

from automl.methods.registry import METHODS
from automl.models.memory import estimate_bytes
from automl.tasks.batches import batch_rows
from automl.training.runtime import Runtime, load_runtime
from automl.training.schedule import lr_multiplier
from automl.training.solo import SoloTrial
from automl.trial import TrialSpec
from tests.architectures import tiny_config, without_dropout
from tests.training.training_cases import host_settings, trial_spec, write_backbone

EIGHT_BITS = (("optimizer", "adamw_8bit"),)


def spec(own: tuple[tuple[str, str], ...] = EIGHT_BITS) -> TrialSpec:
    hyper: dict[str, Any] = {"method": "full", "learning_rate": 2e-3, "weight_decay": 0.1, "dropout": 0.0}
    return trial_spec(steps=12, evaluate_every=6, own=own, **hyper)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A BERT with tensors of which some are large enough for 8 bits."""
    config = tiny_config("bert")
    config.hidden_size, config.intermediate_size = 64, 96
    without_dropout(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = AutoModelForSequenceClassification.from_config(config)
    folder = tmp_path_factory.mktemp("wide")
    write_backbone(folder / "model", "bert", model=model)
    return load_runtime(host_settings(folder))


def losses(trial: SoloTrial, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        trial.take_step()
        found.append(trial.loss)
    return found


def test_it_trains_as_bitsandbytes_does_in_a_plain_loop(runtime: Runtime) -> None:
    trial = SoloTrial(spec(), runtime)
    trial.attach()
    plain: Any = AutoModelForSequenceClassification.from_pretrained(runtime.model.name_or_path)  # type: ignore[operator]
    plain.load_state_dict({name: tensor.clone() for name, tensor in trial.model.state_dict().items()})
    plain.requires_grad_(True).train()
    for name, parameter in plain.named_parameters():  # the pooler is read by no trained head but is the backbone's
        parameter.requires_grad_(name in dict(trial.model.named_parameters()))
    hyper, found = trial.spec.hyper, losses(trial, 12)
    kinds = {state["state1"].dtype for state in trial._attached.optimizer.state.values()}  # type: ignore[union-attr]
    trial.detach()
    optimizer = AdamW8bit(plain.parameters(), lr=1.0, weight_decay=hyper.weight_decay)
    for step, loss in enumerate(found):
        numbers = batch_rows(trial.spec.data_seed, step, hyper.batch_size, len(runtime.train_rows))
        parts = runtime.task.loss(plain, runtime.batch([runtime.train_rows[number] for number in numbers]))
        wanted = parts.total / parts.count
        wanted.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), hyper.clip)
        rate = hyper.learning_rate * lr_multiplier(step, steps=12, warmup=hyper.warmup, schedule=hyper.schedule)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        assert loss == pytest.approx(wanted.item(), rel=1e-6), step
    assert kinds == {torch.uint8, torch.float32}
    assert min(found[-3:]) < found[0]


def test_it_differs_from_moments_of_32_bits(runtime: Runtime) -> None:
    curves = []
    for own in (EIGHT_BITS, ()):
        trial = SoloTrial(spec(own), runtime)
        trial.attach()
        curves.append(losses(trial, 6))
        trial.detach()
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.05)


def test_it_goes_on_to_the_bit(runtime: Runtime) -> None:
    whole = SoloTrial(spec(), runtime)
    whole.attach()
    expected = losses(whole, 12)
    last = whole.snapshot()
    whole.detach()
    first = SoloTrial(spec(), runtime)
    first.attach()
    losses(first, 5)
    state = first.snapshot()
    first.detach()
    second = SoloTrial(spec(), runtime, state)
    second.attach()
    assert losses(second, 7) == expected[5:]
    again = second.snapshot()
    second.detach()
    assert state.moments["state1/bert.encoder.layer.0.attention.self.query.weight"].dtype == torch.uint8
    for one, other in ((last.params, again.params), (last.moments, again.moments)):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_as_much_memory_is_planned_as_its_moments_take(runtime: Runtime) -> None:
    trial = SoloTrial(spec(), runtime)
    trial.attach()
    tensors = [each for state in trial._attached.optimizer.state.values() for each in state.items()]  # type: ignore[union-attr]
    held = sum(value.nbytes for name, value in tensors if isinstance(value, torch.Tensor) and "qmap" not in name)
    trained = sum(each.numel() for each in trial.model.parameters() if each.requires_grad)
    trial.detach()
    planned = estimate_bytes(runtime.model, spec().hyper, tokens=1).adapter
    assert planned == 8 * trained + held
    assert planned < estimate_bytes(runtime.model, spec(()).hyper, tokens=1).adapter


def test_the_usual_optimizer_is_not_recorded() -> None:
    """So trials of a study from before go on."""
    assert "optimizer" not in spec(()).hyper.as_dict()
    assert spec().hyper.as_dict()["optimizer"] == "adamw_8bit"
    assert METHODS["full"].settings[0].default == "adamw"


def test_a_missing_package_is_named_before_anything_is_read(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "from automl.cli.main import main\n"
        "main(['validate', sys.argv[1]])\n"
    )
    space = tmp_path / "space.yaml"
    space.write_text(
        "version: 1\nstudy: s\nmodel: {folder: ./m}\ntask: {type: completion, data: d.jsonl}\n"
        "fixed: {method: full, optimizer: adamw_8bit}\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(space)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "optimizer adamw_8bit: needs the package bitsandbytes; pip install 'automl-lora[quant]'" in done.stderr
    assert "Traceback" not in done.stderr
