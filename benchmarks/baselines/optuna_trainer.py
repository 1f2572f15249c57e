"""Baseline (c): `Trainer.hyperparameter_search` with Optuna: one process, one trial after the other, all CPUs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from transformers import DataCollatorWithPadding, TrainerCallback

from benchmarks.baselines import trial as parts


class Search(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed (pyproject.toml)
    """The search, which also listens to its Trainer and notes what each trial has cost and measured."""

    def __init__(self, world: dict[str, Any]) -> None:
        self._world = world
        self._number = 0
        tokenizer = parts.load_tokenizer(world)
        self._trainer = parts.TimedTrainer(
            model_init=self._model,
            args=parts.arguments_of(world, 0),
            train_dataset=parts.load_rows(world, tokenizer, "train"),
            eval_dataset=parts.load_rows(world, tokenizer, "validation"),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=parts.accuracy,
            callbacks=[parts.Relay(self._note), self],
        )

    def run(self) -> None:
        """Train every configuration once: a grid over their numbers takes the place of a sampler."""
        count = len(self._world["configurations"])
        self._trainer.hyperparameter_search(
            hp_space=self._space,
            backend="optuna",
            n_trials=count,
            direction="minimize",
            compute_objective=lambda metrics: metrics["eval_loss"],
            sampler=optuna.samplers.GridSampler({"number": list(range(count))}, seed=0),
            pruner=optuna.pruners.NopPruner(),
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model is there, training starts."""
        self._begun = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last evaluation is over."""
        evaluation = self._trainer.evaluation_seconds
        seconds = time.perf_counter() - self._begun - evaluation
        parts.save_adapter(self._world, self._trainer.model, self._number)
        parts.write_result(self._world, self._number, self._started, seconds, evaluation, self._measured)

    def _space(self, trial: optuna.Trial) -> dict[str, float]:
        self._started = time.time()
        self._measured: list[dict[str, float]] = []
        self._trainer.evaluation_seconds = 0.0
        self._number = trial.suggest_int("number", 0, len(self._world["configurations"]) - 1)
        return {"learning_rate": self._world["configurations"][self._number]["learning_rate"]}

    def _model(self, trial: Any) -> Any:
        """Called once without a trial when the Trainer is made, then at the start of each trial."""
        return parts.with_adapter(
            self._world, parts.load_model(self._world), self._world["configurations"][self._number]
        )

    def _note(self, metrics: dict[str, float]) -> None:
        self._measured.append(metrics)


def main() -> None:
    """Run the search of the world named on the command line."""
    world = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(world["workers"] * world["threads"])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Search(world).run()


if __name__ == "__main__":
    main()
