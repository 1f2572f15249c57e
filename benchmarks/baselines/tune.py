"""Ray Tune over all configurations of a world, with the default loggers and no scheduler: what both Tune arms share."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune


def read_world() -> dict[str, Any]:
    """The document named on the command line."""
    world: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return world


@contextmanager
def local_ray(world: dict[str, Any]) -> Iterator[None]:
    """Ray on this machine, with as many CPUs as the world's workers have threads, inside the block."""
    folder = tempfile.mkdtemp(prefix="bench-", dir="/tmp")  # Ray's sockets need a short path
    try:
        ray.init(
            num_cpus=world["workers"] * world["threads"],
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=128 * 2**20,
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def run_config(world: dict[str, Any]) -> tune.RunConfig:
    """Where a run writes, and that it says nothing, keeps no checkpoints, and ends where a trial fails."""
    return tune.RunConfig(
        name="tune",
        storage_path=str(Path(world["output"]).resolve()),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        failure_config=tune.FailureConfig(fail_fast=True),
        verbose=0,
    )


def run(trainable: Any, world: dict[str, Any], *, reuse_actors: bool) -> None:
    """Train every configuration once, `workers` at a time. Raises RuntimeError if one failed."""
    with local_ray(world):
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": world["threads"]}),
            param_space={"number": tune.grid_search(list(range(len(world["configurations"])))), "world": world},
            tune_config=tune.TuneConfig(reuse_actors=reuse_actors, max_concurrent_trials=world["workers"]),
            run_config=run_config(world),
        )
        results = tuner.fit()
        if results.errors:
            raise RuntimeError(f"{results.num_errors} trials failed, the first with: {results.errors[0]}")
