"""A peer of `head_to_head`: syne-tune's ASHA on its local backend, a fresh process for each trial, as it documents it.

Runs in an environment of its own with syne-tune, torch, transformers and PEFT. ASHA with its defaults: random points, a
grace period of one evaluation, reduction factor 3.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syne_tune import StoppingCriterion, Tuner  # type: ignore[import-not-found]  # in an environment of its own
from syne_tune.backend import LocalBackend  # type: ignore[import-not-found]
from syne_tune.config_space import (  # type: ignore[import-not-found]
    choice,
    lograndint,
    loguniform,
    randint,
    uniform,
)
from syne_tune.optimizer.baselines import ASHA  # type: ignore[import-not-found]

from benchmarks.baselines import search_syne_trial


def domain(parameter: Mapping[str, Any]) -> Any:
    """A parameter in syne-tune's words."""
    if "choices" in parameter:
        return choice(parameter["choices"])
    low, high = parameter["low"], parameter["high"]
    if parameter["type"] == "int":
        return (lograndint if parameter["log"] else randint)(low, high)
    return (loguniform if parameter["log"] else uniform)(low, high)


def main() -> None:
    """Run the search of the world named on the command line."""
    path = Path(sys.argv[1])
    world = json.loads(path.read_text(encoding="utf-8"))
    space = {name: domain(parameter) for name, parameter in world["space"].items()}
    Tuner(
        trial_backend=LocalBackend(entry_point=search_syne_trial.__file__),
        scheduler=ASHA(
            {**space, "world": str(path.resolve())},
            metric="accuracy",
            time_attr="evaluation",
            max_t=world["evaluations"],
            do_minimize=False,
            random_seed=world["seed"],
        ),
        stop_criterion=StoppingCriterion(
            max_wallclock_time=max(1.0, world["deadline"] - time.time()),
            max_num_trials_finished=world["trials"] or None,
        ),
        n_workers=world["workers"],
        sleep_time=1.0,
    ).run()


if __name__ == "__main__":
    main()
