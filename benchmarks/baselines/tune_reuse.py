"""Baseline (b): a class trainable of Ray Tune with reuse_actors=True and a hand-written loop over PEFT.

What a careful user writes: a process lives on from trial to trial, with imports, backbone and tokenised rows; only the
adapter is new. One trial at a time in each process.
"""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from benchmarks.baselines.tune import read_world, run


class LoraTrial(tune.Trainable):  # type: ignore[misc]  # Ray's types are not followed (pyproject.toml)
    """One process; `reset_config` makes it the next trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Import, load and tokenise, once, which belongs to no trial; then begin the first one."""
        from transformers import DataCollatorWithPadding

        from benchmarks.baselines import trial

        self._world: dict[str, Any] = config["world"]
        tokenizer = trial.load_tokenizer(self._world)
        self._backbone = trial.load_model(self._world)
        self._train = trial.load_rows(self._world, tokenizer, "train")
        self._validation = trial.load_rows(self._world, tokenizer, "validation")
        self._collate = DataCollatorWithPadding(tokenizer)
        self._head = self._backbone.classifier
        self._begin(config["number"], time.time())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the old adapter off and put the next one on."""
        started = time.time()
        self._model.unload()
        self._backbone.classifier = self._head  # unload leaves the trained copy in place
        self._begin(new_config["number"], started)
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation and evaluate."""
        from benchmarks.baselines import trial

        start = time.perf_counter()
        until = min(self._step + self._world["evaluate_every"], self._world["steps"])
        while self._step < until:
            self._take_step()
        trained = time.perf_counter()
        metrics = self._evaluate() | {"step": self._step}
        self._train_seconds += trained - start
        self._evaluation_seconds += time.perf_counter() - trained
        self._measured.append(metrics)
        done = self._step == self._world["steps"]
        if done:
            trial.save_adapter(self._world, self._model, self._number)
            trial.write_result(
                self._world,
                self._number,
                self._started,
                self._train_seconds,
                self._evaluation_seconds,
                self._measured,
            )
        return metrics | {"done": done}

    def _begin(self, number: int, started: float) -> None:
        import torch
        from transformers import get_linear_schedule_with_warmup

        from benchmarks.baselines import trial

        self._number, self._started = number, started
        self._step, self._train_seconds, self._evaluation_seconds = 0, 0.0, 0.0
        self._measured: list[dict[str, float]] = []
        torch.manual_seed(self._world["seed"] + number)
        self._model = trial.with_adapter(self._world, self._backbone, number)
        self._parameters = [each for each in self._model.parameters() if each.requires_grad]
        rate = self._world["configurations"][number]["learning_rate"]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.01)
        warmup = -(-6 * self._world["steps"] // 100)
        self._schedule = get_linear_schedule_with_warmup(self._optimizer, warmup, self._world["steps"])
        self._order = torch.randperm(len(self._train)).tolist()

    def _take_step(self) -> None:
        import torch

        size = self._world["batch_size"]
        places = range(self._step * size, (self._step + 1) * size)
        rows = [self._train[self._order[place % len(self._order)]] for place in places]
        self._model.train()
        self._model(**self._collate(rows)).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self._step += 1

    def _evaluate(self) -> dict[str, float]:
        import torch

        from benchmarks.baselines import trial

        self._model.eval()
        losses, right = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(self._validation), trial.EVALUATION_ROWS):
                batch = self._collate(self._validation[start : start + trial.EVALUATION_ROWS])
                output = self._model(**batch)
                losses += float(output.loss) * len(batch["labels"])
                right += int((output.logits.argmax(dim=-1) == batch["labels"]).sum())
        return {"loss": losses / len(self._validation), "accuracy": right / len(self._validation)}


if __name__ == "__main__":
    run(LoraTrial, read_world(), reuse_actors=True)
