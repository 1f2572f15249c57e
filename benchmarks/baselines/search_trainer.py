"""A peer of `head_to_head`: `Trainer.hyperparameter_search` with Optuna, its default sampler and MedianPruner.

One process, one trial after the other, all CPUs, as the documentation of transformers has it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import optuna
import torch
from transformers import DataCollatorWithPadding, Trainer

from benchmarks.baselines import search
from benchmarks.baselines import trial as parts
from benchmarks.baselines.tune import read_world


class Search:
    """The search, which knows the trial that its Trainer is busy with."""

    def __init__(self, world: dict[str, Any]) -> None:
        self._world = world
        self._number = 0
        self._drawn: dict[str, Any] = {name: _first(parameter) for name, parameter in world["space"].items()}
        tokenizer = parts.load_tokenizer(world)
        self._trainer = Trainer(
            model_init=self._model,
            args=search.arguments(world, search.completed(world, self._drawn), 0),
            train_dataset=parts.load_rows(world, tokenizer, "train"),
            eval_dataset=parts.load_rows(world, tokenizer, "validation"),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=parts.accuracy,
            callbacks=[parts.Relay(self._note)],
        )

    def run(self) -> None:
        """Search until the time is over or all trials are made."""
        self._trainer.hyperparameter_search(
            hp_space=self._space,
            backend="optuna",
            n_trials=self._world["trials"] or 100_000,
            direction="maximize",
            compute_objective=lambda metrics: metrics["eval_accuracy"],
            sampler=optuna.samplers.TPESampler(seed=self._world["seed"]),
            pruner=optuna.pruners.MedianPruner(),
            timeout=max(1.0, self._world["deadline"] - time.time()),
        )

    def _space(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a point; returned is what the Trainer itself has to know of it."""
        self._number = trial.number
        self._drawn = {name: _draw(trial, name, parameter) for name, parameter in self._world["space"].items()}
        search.note(self._world, self._number, self._drawn)
        wanted = search.completed(self._world, self._drawn)
        return {
            "learning_rate": wanted["learning_rate"],
            "per_device_train_batch_size": wanted["batch_size"],
            "max_steps": wanted["steps"],
            "eval_steps": wanted["evaluate_every"],
            "seed": 1000 * self._world["seed"] + trial.number,
        }

    def _model(self, trial: Any) -> Any:
        """Called once without a trial when the Trainer is made, then at the start of each trial."""
        wanted = search.completed(self._world, self._drawn)
        return parts.with_adapter(self._world, parts.load_model(self._world), wanted)

    def _note(self, metrics: dict[str, float]) -> None:
        search.note(self._world, self._number, self._drawn, metrics["accuracy"])


def _draw(trial: optuna.Trial, name: str, parameter: Mapping[str, Any]) -> Any:
    if "choices" in parameter:
        return trial.suggest_categorical(name, parameter["choices"])
    suggest = trial.suggest_int if parameter["type"] == "int" else trial.suggest_float
    return suggest(name, parameter["low"], parameter["high"], log=parameter["log"])


def _first(parameter: Mapping[str, Any]) -> Any:
    return parameter["choices"][0] if "choices" in parameter else parameter["low"]


def main() -> None:
    """Run the search of the world named on the command line."""
    world = read_world()
    torch.set_num_threads(world["workers"] * world["threads"])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Search(world).run()


if __name__ == "__main__":
    main()
