"""What the packed trainer is held against: one trial alone, with real PEFT and torch.optim.AdamW.

Nothing of `automl.packed` and nothing of the solo trainer is used here. The rows are those `batch_rows` names; padding
is to the longest of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets
from automl.packed.workload import Workload
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks.base import IGNORED, Row
from automl.tasks.batches import batch_rows
from automl.tasks.classification import Classification
from automl.tasks.completion import Completion
from automl.trial import TrialSpec
from tests.architectures import LABELS, VOCABULARY

SETTINGS = TaskSettings(type="classification", data=DataSettings(kind="files"), metric="loss", max_length=24)


class PadOnly:
    """All of a tokenizer that training needs."""

    pad_token_id = 0


def token_rows(kind: str, *, count: int = 48, seed: int = 3, longest: int = 14) -> list[Row]:
    """Random rows of 5 to `longest` tokens with something to learn: the label follows from the first token."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for _ in range(count):
        ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(4, longest - 1))] + [1]  # T5 reads the end
        if kind == "classification":
            rows.append({"input_ids": ids, "labels": ids[0] % len(LABELS)})
        else:
            prompt = draw.randint(1, 3)
            rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


def workload(kind: str = "classification", **options: Any) -> Workload:
    rows = token_rows(kind, **options)
    task = Classification(SETTINGS) if kind == "classification" else Completion(SETTINGS)
    return Workload(task=task, train_rows=rows[:36], evaluation_rows=rows[36:], tokenizer=PadOnly())


def spec(number: int, *, steps: int = 40, evaluate_every: int = 10, **hyper: Any) -> TrialSpec:
    return TrialSpec(
        number=number,
        params={},
        hyper=Hyperparameters(**{"learning_rate": 1e-2, **hyper}),
        seed=100 + number,
        data_seed=7,
        steps=steps,
        evaluate_every=evaluate_every,
    )


class PeftRun:
    """One trial alone. losses: mean training loss of every step. parameters: the trained tensors, by PEFT's names."""

    def __init__(
        self,
        model: nn.Module,
        load: Workload,
        trial: TrialSpec,
        *,
        steps: int | None = None,
        prepared: Callable[[nn.Module, TrialSpec], None] = lambda model, trial: None,
    ) -> None:
        hyper = trial.hyper
        method = METHODS["lora"]
        layers = [layer.path for layer in resolve_targets(model, hyper.target)]
        peft_model = method.attach(model, hyper, layers, head_modules(model), trial.seed)
        prepared(peft_model, trial)
        self.before = {name: tensor.clone() for name, tensor in method.state(peft_model).items()}
        self.losses = list(_train(peft_model, load, trial, steps or trial.steps))
        self.parameters = {name: tensor.clone() for name, tensor in method.state(peft_model).items()}
        peft_model.eval()
        with torch.no_grad():
            batches = load.evaluation_batches(load.evaluation_rows, load.evaluation_tokens, torch.device("cpu"))
            self.metrics = load.task.evaluate(peft_model, batches, load.tokenizer)
        method.detach(peft_model)


def _train(model: Any, load: Workload, trial: TrialSpec, steps: int) -> Iterator[float]:
    hyper = trial.hyper
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=hyper.learning_rate, weight_decay=hyper.weight_decay)
    warmup = math.ceil(hyper.warmup * trial.steps)
    schedule = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, trial.steps),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, trial.steps),
    }[hyper.schedule]()
    model.train()
    task = load.task.for_trial(hyper)
    for step in range(steps):
        chosen = batch_rows(trial.data_seed, step, hyper.batch_size, len(load.train_rows))
        batch = task.collate([load.train_rows[index] for index in chosen], 0)
        parts = task.loss(model, batch)
        loss = parts.total / parts.count
        loss.backward()
        if hyper.clip > 0:
            nn.utils.clip_grad_norm_(parameters, hyper.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()
