"""Baseline (a): a function trainable of Ray Tune with HF Trainer and PEFT; a fresh process for each trial."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from benchmarks.baselines.tune import read_world, run


def trainable(config: dict[str, Any]) -> None:
    """One trial, in its own process: everything is imported, loaded and tokenised anew."""
    started = time.time()
    from benchmarks.baselines.trial import run_trial

    run_trial(config["world"], config["number"], tune.report, started=started)


if __name__ == "__main__":
    run(trainable, read_world(), reuse_actors=False)
