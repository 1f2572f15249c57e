"""Peers of `head_to_head`: Ray Tune with OptunaSearch and ASHA, or (`random`) with random points and nothing else.

ASHA as in Ray's guides: a grace period of one evaluation, reduction factor 2. Actors are reused from trial to trial,
which spares later trials the imports.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from benchmarks.baselines.tune import local_ray, read_world, run_config


def trainable(config: dict[str, Any], world: dict[str, Any]) -> None:
    """One trial, in an actor that may have had others before."""
    from benchmarks.baselines.search import train

    number = zlib.crc32(tune.get_context().get_trial_id().encode()) % 1_000_000  # it is no number where Optuna searches
    train(world, number, config, tune.report)


def domain(parameter: Mapping[str, Any]) -> Any:
    """A parameter in Ray's words; upper ends of whole numbers are excluded there."""
    if "choices" in parameter:
        return tune.choice(parameter["choices"])
    low, high = parameter["low"], parameter["high"]
    if parameter["type"] == "int":
        return (tune.lograndint if parameter["log"] else tune.randint)(low, high + 1)
    return (tune.loguniform if parameter["log"] else tune.uniform)(low, high)


def settings(world: dict[str, Any], *, is_random: bool) -> tune.TuneConfig:
    """How trials are chosen and ended."""
    common = {
        "metric": "accuracy",
        "mode": "max",
        "num_samples": world["trials"] or -1,
        "time_budget_s": max(1.0, world["deadline"] - time.time()),
        "reuse_actors": True,
    }
    if is_random:
        searcher = BasicVariantGenerator(max_concurrent=world["workers"], random_state=world["seed"])
        return tune.TuneConfig(search_alg=searcher, scheduler=FIFOScheduler(), **common)
    return tune.TuneConfig(
        search_alg=OptunaSearch(seed=world["seed"]),
        scheduler=ASHAScheduler(max_t=world["evaluations"], grace_period=1, reduction_factor=2),
        max_concurrent_trials=world["workers"],
        **common,
    )


def main() -> None:
    """Run the search of the world named on the command line."""
    world = read_world()
    with local_ray(world):
        tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, world=world), {"cpu": world["threads"]}),
            param_space={name: domain(parameter) for name, parameter in world["space"].items()},
            tune_config=settings(world, is_random="random" in sys.argv[2:]),
            run_config=run_config(world),
        ).fit()


if __name__ == "__main__":
    main()
