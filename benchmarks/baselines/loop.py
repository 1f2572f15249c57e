"""A hand-written training loop over PEFT: backbone and rows stay, the next adapter takes the place of the one before.

What a careful user writes: AdamW, a linear schedule after a warm-up, clipped gradients, dynamic padding; settings as in
`benchmarks.baselines.trial`. `world` is a document as that module describes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup

from benchmarks.baselines import trial

Rows = Sequence[Mapping[str, Any]]


class PeftLoop:
    """One process; `begin` makes it the next training."""

    def __init__(self, world: trial.World) -> None:
        """Load and tokenise, once."""
        self._world = world
        self._tokenizer = trial.load_tokenizer(world)
        self._backbone = trial.load_model(world)
        self._head = self._backbone.classifier
        self._collate = DataCollatorWithPadding(self._tokenizer)
        self._train = self.rows("train")
        self.model: Any = None

    def rows(self, split: str) -> Rows:
        """Tokenised rows of one split."""
        return trial.load_rows(self._world, self._tokenizer, split)

    def begin(self, wanted: Mapping[str, Any], *, seed: int, steps: int, batch_size: int) -> None:
        """Take the old adapter off and put a new one on."""
        if self.model is not None:
            self.model.unload()
            self._backbone.classifier = self._head  # unload leaves the trained copy in place
        torch.manual_seed(seed)
        self.model = trial.with_adapter(self._world, self._backbone, wanted)
        self._parameters = [each for each in self.model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=wanted["learning_rate"], weight_decay=0.01)
        self._schedule = get_linear_schedule_with_warmup(self._optimizer, math.ceil(0.06 * steps), steps)
        passes = math.ceil(steps * batch_size / len(self._train))
        self._order = [row for _ in range(passes) for row in torch.randperm(len(self._train)).tolist()]
        self._batch_size, self.step = batch_size, 0

    def train_to(self, step: int) -> None:
        """Train up to this step."""
        self.model.train()
        while self.step < step:
            first = self.step * self._batch_size
            rows = [self._train[row] for row in self._order[first : first + self._batch_size]]
            self.model(**self._collate(rows)).loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()
            self.step += 1

    def evaluate(self, rows: Rows) -> dict[str, float]:
        """Mean loss and accuracy."""
        self.model.eval()
        losses, right = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(rows), trial.EVALUATION_ROWS):
                batch = self._collate(rows[start : start + trial.EVALUATION_ROWS])
                output = self.model(**batch)
                losses += float(output.loss) * len(batch["labels"])
                right += int((output.logits.argmax(dim=-1) == batch["labels"]).sum())
        return {"loss": losses / len(rows), "accuracy": right / len(rows)}
