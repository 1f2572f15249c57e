"""The parts that all baselines share: reading, tokenising, the model, the adapter, and a run of HF's Trainer.

Written as the libraries' documentation has it, with what is cheap to get right: dynamic padding, batched evaluation, no
checkpoints in between, no progress bars. `world` is the JSON document of `benchmarks.sweep_world.World`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

World = Mapping[str, Any]
Report = Callable[[dict[str, float]], None]

EVALUATION_ROWS = 32
"""Rows of one forward pass of an evaluation: 2,048 tokens at 64 tokens a row, as automl has it."""


def load_tokenizer(world: World) -> Any:
    """The backbone's tokenizer."""
    return AutoTokenizer.from_pretrained(world["model"])


def load_rows(world: World, tokenizer: Any, split: str) -> list[dict[str, Any]]:
    """Tokenised rows of one split."""
    with open(world[split], encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    encoded = tokenizer([record["text"] for record in records], truncation=True, max_length=world["max_length"])
    labels = [world["labels"].index(record["label"]) for record in records]
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]


def load_model(world: World) -> Any:
    """The backbone with a fresh head, without dropout of its own, as in automl."""
    config = AutoConfig.from_pretrained(world["model"], num_labels=len(world["labels"]))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return AutoModelForSequenceClassification.from_pretrained(world["model"], config=config)


def with_adapter(world: World, model: Any, wanted: Mapping[str, Any]) -> Any:
    """The model with the adapter of a configuration."""
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=wanted["rank"],
            lora_alpha=wanted["alpha"],
            lora_dropout=wanted["dropout"],
            target_modules=world["targets"][wanted["target"]],
        ),
    )


def arguments(
    folder: Path, *, learning_rate: float, batch_size: int, steps: int, evaluate_every: int, seed: int
) -> TrainingArguments:
    """Settings of the Trainer, which are the defaults of automl. folder: where it may write."""
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(0.06 * steps),
        weight_decay=0.01,
        max_grad_norm=1.0,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=EVALUATION_ROWS,
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=seed,
    )


def arguments_of(world: World, number: int) -> TrainingArguments:
    """Those of one of the world's configurations."""
    return arguments(
        Path(world["output"]) / f"trainer-{number}",
        learning_rate=world["configurations"][number]["learning_rate"],
        batch_size=world["batch_size"],
        steps=world["steps"],
        evaluate_every=world["evaluate_every"],
        seed=world["seed"] + number,
    )


def accuracy(predictions: Any) -> dict[str, float]:
    """Share of rows whose class was found."""
    found = predictions.predictions.argmax(axis=-1)
    return {"accuracy": float((found == predictions.label_ids).mean())}


class TimedTrainer(Trainer):  # type: ignore[misc]  # transformers' types are not followed (pyproject.toml)
    """A Trainer that knows how long it has evaluated."""

    evaluation_seconds = 0.0

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as Trainer does, timed."""
        start = time.perf_counter()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.evaluation_seconds += time.perf_counter() - start


class Relay(TrainerCallback):  # type: ignore[misc]  # see above
    """Hands the metrics of every evaluation on."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """After each evaluation."""
        self._report({"step": state.global_step, "loss": metrics["eval_loss"], "accuracy": metrics["eval_accuracy"]})


def run_trial(world: World, number: int, report: Report, *, started: float) -> None:
    """One whole trial from nothing: load, tokenise, train, evaluate, save the adapter, write the line.

    started: time at which the trial began, before this module was imported.
    """
    tokenizer = load_tokenizer(world)
    model = with_adapter(world, load_model(world), world["configurations"][number])
    measured: list[dict[str, float]] = []

    def keep(metrics: dict[str, float]) -> None:
        measured.append(metrics)
        report(metrics)

    trainer = TimedTrainer(
        model=model,
        args=arguments_of(world, number),
        train_dataset=load_rows(world, tokenizer, "train"),
        eval_dataset=load_rows(world, tokenizer, "validation"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[Relay(keep)],
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start - trainer.evaluation_seconds
    save_adapter(world, model, number)
    write_result(world, number, started, seconds, trainer.evaluation_seconds, measured)


def save_adapter(world: World, model: Any, number: int) -> None:
    """Keep the trained adapter."""
    model.save_pretrained(str(Path(world["output"]) / f"adapter-{number}"))


def write_result(
    world: World,
    number: int,
    started: float,
    train_seconds: float,
    evaluation_seconds: float,
    measured: list[dict[str, float]],
) -> None:
    """Append the trial's line; several processes may do so at once."""
    line = {
        "trial": number,
        "started": started,
        "ended": time.time(),
        "train_seconds": train_seconds,
        "evaluation_seconds": evaluation_seconds,
        "measurements": measured,
        "process": os.getpid(),
        "threads": torch.get_num_threads(),
    }
    descriptor = os.open(world["results"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)
