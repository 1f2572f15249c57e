"""A cut adapter that is trained a little: the steps are AdamW's on those rows, and nothing is left in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from automl.importance.cuts import even_ranks, global_ranks, parameters
from automl.lora import Hyperparameters
from automl.tasks.batches import batch_rows
from automl.training.cut import TurnedAdapter
from automl.training.export import with_adapter
from automl.training.recovery import recover
from automl.training.runtime import HostSettings, Runtime
from automl.training.schedule import lr_multiplier
from tests.training.test_cut import relative, some_rows, trained, turned
from tests.training.training_cases import runtime_with

STEPS = 5
HYPER = Hyperparameters(learning_rate=0.02, batch_size=4, weight_decay=0.0, warmup=0.1)


def small(found: TurnedAdapter) -> list[int]:
    return global_ranks(found.strengths, found.costs, parameters(even_ranks(found.strengths, 1), found.costs))


def answers(model: Any, settings: HostSettings) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([ids])).logits.flatten() for ids in some_rows(settings)])


def by_hand(folder: Path, settings: HostSettings) -> torch.Tensor:
    """Logits after training the adapter in `folder` with plain PEFT and torch, step by step."""
    runtime: Runtime = runtime_with(settings)
    model = with_adapter(runtime.model, folder).eval()
    own = [each for name, each in model.named_parameters() if ".lora_" in name or ".modules_to_save." in name]
    for parameter in own:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(own, lr=1.0, weight_decay=0.0)
    for step in range(STEPS):
        rows = [runtime.train_rows[n] for n in batch_rows(9, step, HYPER.batch_size, len(runtime.train_rows))]
        optimizer.zero_grad()
        parts = runtime.task.loss(model, runtime.batch(rows))
        (parts.total / parts.count).backward()
        torch.nn.utils.clip_grad_norm_(own, HYPER.clip)
        for group in optimizer.param_groups:
            group["lr"] = HYPER.learning_rate * lr_multiplier(step, steps=STEPS, warmup=0.1, schedule="linear")
        optimizer.step()
    return answers(model, settings)


@pytest.mark.parametrize(
    ("name", "hyper"), [("bert", {}), ("llama", {}), ("bert", {"method": "adalora", "learning_rate": 0.1})]
)
def test_it_is_plain_training_of_the_cut_and_its_folder(
    name: str, hyper: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings: HostSettings = request.getfixturevalue(name)
    found, runtime = turned(trained(settings, tmp_path / "out", **hyper), settings)
    ranks = small(found)
    found.write(ranks, tmp_path / "cut", {"kind": "adapter"})
    found.cut(ranks)
    before = answers(found.model, settings)
    result = recover(found, runtime, ranks, HYPER, steps=STEPS, seed=9)
    after = answers(found.model, settings)
    assert relative(after, by_hand(tmp_path / "cut", settings)) < 1e-5
    assert relative(after, before) > 1e-2
    found.write(ranks, tmp_path / "recovered", {"kind": "adapter"}, result)
    read = with_adapter(runtime_with(settings).model, tmp_path / "recovered").eval()
    assert relative(answers(read, settings), after) < 1e-6
    found.cut(ranks)
    assert torch.equal(answers(found.model, settings), before), "another cut starts from the adapter, its head too"
