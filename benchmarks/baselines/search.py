"""What the searches of others in `head_to_head` share: one training function, and a line for each evaluation.

`world` is the JSON document of `benchmarks.head_to_head_world`. A trial is HF's Trainer on PEFT, as its documentation
has it, with the parts of `benchmarks.baselines.trial`. Nothing of automl is in it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, Trainer

from benchmarks.baselines import trial as parts

World = Mapping[str, Any]
Values = Mapping[str, Any]


def completed(world: World, drawn: Values) -> dict[str, Any]:
    """A drawn point as what is trained: alpha from its ratio to the rank, and the steps that make equal examples.

    A rate that is searched at another alpha (`at_alpha`) is turned into the one to train with.
    """
    wanted = {**world["fixed"], **drawn}
    wanted["alpha"] = wanted["alpha_ratio"] * wanted["rank"]
    if world["at_alpha"]:
        wanted["learning_rate"] *= math.sqrt(world["at_alpha"] / wanted["alpha"])
    wanted["evaluate_every"] = math.ceil(world["examples"] / wanted["batch_size"] / world["evaluations"])
    wanted["steps"] = world["evaluations"] * wanted["evaluate_every"]
    return wanted


def arguments(world: World, wanted: Values, number: int) -> Any:
    """The Trainer's settings for what is trained. number: of the trial; its seed follows from it."""
    return parts.arguments(
        Path(world["output"]) / f"trainer-{number}",
        learning_rate=wanted["learning_rate"],
        batch_size=wanted["batch_size"],
        steps=wanted["steps"],
        evaluate_every=wanted["evaluate_every"],
        seed=1000 * world["seed"] + number,
    )


def train(world: World, number: int, drawn: Values, report: parts.Report) -> None:
    """One trial: load, tokenise, train, evaluate. report: told after each evaluation; may end the trial by raising."""
    wanted = completed(world, drawn)
    note(world, number, drawn)
    tokenizer = parts.load_tokenizer(world)

    def keep(metrics: dict[str, float]) -> None:
        note(world, number, drawn, metrics["accuracy"])
        report(metrics)

    Trainer(
        model=parts.with_adapter(world, parts.load_model(world), wanted),
        args=arguments(world, wanted, number),
        train_dataset=parts.load_rows(world, tokenizer, "train"),
        eval_dataset=parts.load_rows(world, tokenizer, "validation"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=parts.accuracy,
        callbacks=[parts.Relay(keep)],
    ).train()


def note(world: World, number: int, drawn: Values, value: float | None = None) -> None:
    """Append a line: that a trial has begun, or what it was worth just now. Several processes may do so at once."""
    line = {"trial": number, "at": time.time(), "drawn": dict(drawn), "value": value}
    descriptor = os.open(world["results"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)
