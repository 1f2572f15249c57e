"""The script that `search_syne` starts for each trial, with the trial's point as its options."""

from __future__ import annotations

import argparse
import json
import os
from itertools import count
from pathlib import Path
from typing import Any


def main() -> None:
    """One trial."""
    from syne_tune import Reporter  # type: ignore[import-not-found]  # in an environment of its own

    from benchmarks.baselines.search import train

    options = argparse.ArgumentParser()
    options.add_argument("--world", type=Path, required=True)
    given, rest = options.parse_known_args()
    world = json.loads(given.world.read_text(encoding="utf-8"))
    of_space = argparse.ArgumentParser()
    for name, parameter in world["space"].items():
        of_space.add_argument(f"--{name}", type=_kind(parameter), required=True)
    drawn, _ = of_space.parse_known_args(rest)  # syne-tune adds options of its own
    report, numbers = Reporter(), count(1)
    train(world, os.getpid(), vars(drawn), lambda metrics: report(evaluation=next(numbers), **metrics))


def _kind(parameter: dict[str, Any]) -> type:
    if "choices" in parameter:
        return type(parameter["choices"][-1])
    return int if parameter["type"] == "int" else float


if __name__ == "__main__":
    main()
