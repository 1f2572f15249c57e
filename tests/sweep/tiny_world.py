"""A world small enough for whole searches in a test: a two-layer BERT, 240 sentences in three classes, a space file."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.architectures import save_tiny

WORDS = {"negative": ("w3", "w4", "w5"), "neutral": ("w6", "w7", "w8"), "positive": ("w9", "w10", "w11")}

SPACE = """\
version: 1
study: tiny
model: ./model
task:
  type: classification
  data: ./data.jsonl
  metric: accuracy
  seed: 3
space:
  rank: {{type: int, low: 1, high: 8, log: true}}
  learning_rate: {{type: float, low: 1.0e-3, high: 1.0e-1, log: true}}
fixed: {{target: qv, batch_size: 8, max_length: 12}}
search: {{sampler: random, pruner: {pruner}, trials: {trials}, steps: {steps}, evaluate_every: 5, seed: 3, keep: 2,
  squeeze: {squeeze}}}
verify: {{automatic: {verify}}}
run: {{executor: {executor}, workers: {workers}, threads: 1, precision: fp32{slots}}}
"""


def make_world(
    folder: Path,
    *,
    trials: int = 4,
    steps: int = 20,
    pruner: str = "none",
    executor: str = "inline",
    workers: int = 1,
    slots: int | None = None,
    verify: bool = False,
    squeeze: bool = False,
) -> Path:
    """Write model, data and space file into `folder` and return the space file's path.

    squeeze: the winner's adapter at the end, as searches do by default; most tests have no use for it.
    """
    save_tiny(folder / "model", "bert", kind="classification")
    generator = random.Random(3)
    with (folder / "data.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(240):
            label = list(WORDS)[number % 3]
            words = [generator.choice(WORDS[label]) for _ in range(4)] + [
                f"w{12 + number % 40}",
                f"w{12 + number // 6}",
            ]
            generator.shuffle(words)
            lines.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")
    space = folder / "space.yaml"
    text = SPACE.format(
        trials=trials,
        steps=steps,
        pruner=pruner,
        executor=executor,
        workers=workers,
        verify=str(verify).lower(),
        squeeze=str(squeeze).lower(),
        slots="" if slots is None else f", slots: {slots}",
    )
    space.write_text(text, encoding="utf-8")
    return space
