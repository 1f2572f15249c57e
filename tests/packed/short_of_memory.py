"""A process that may take little more memory than it has: says on stdout, as JSON, what becomes of trials in it.

The limit is on addresses (`ulimit -v`): torch's allocator for CPUs runs into it for real.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from automl import durable
from automl.packed.host import PackedHost
from automl.packed.trainer import PackedTrainer
from automl.training.checkpoint import SlotFolder
from automl.training.memory import TOKEN_BUDGET
from automl.training.runtime import Runtime
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement, TrialFailure, TrialSpec
from automl.trial_folders import slot_folder
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload

WIDE = replace(spec(1, batch_size=1024, learning_rate=3e-3, steps=2), evaluate_every=1)
SMALL = replace(spec(0, batch_size=2, learning_rate=3e-3, steps=2), evaluate_every=1)
HUGE = replace(spec(2, rank=400_000, steps=2), evaluate_every=1)


@contextmanager
def memory(more: int) -> Iterator[None]:
    """Inside the block the process may take so many bytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def host(output: Path) -> PackedHost:
    load = workload()
    trainer = PackedTrainer(tiny_model("bert"), load, token_budget=10**6)

    def export(trial: TrialSpec, measurement: Measurement) -> str:
        folder = output / str(trial.number)
        with durable.sealed_folder(folder, {}) as draft:
            trainer.export(trial.number, draft, base="bert")
        return str(folder)

    return PackedHost(
        trainer,
        capacity=3,
        files=lambda trial: SlotFolder(slot_folder(output, trial.number), attempt=1, identity={"seed": trial.seed}),
        discard=lambda trial: None,
        export=export,
        majorities=[{}],
    )


def packed(pack: PackedHost, trials: Sequence[TrialSpec]) -> dict[str, Any]:
    """losses: by trial, or why it failed. rows: of its last micro-batch. most: trials for which there was room."""
    found: dict[str, Any] = {}
    for trial in trials:
        pack.open(trial)
    most, rows = pack.capacity, {}
    while events := pack.advance():
        rows |= {number: member.micro_batch for number, member in pack.trainer.members.items()}
        for event in events:
            if isinstance(event, TrialFailure):
                found[str(event.trial)] = [str(event.reason), event.message]
                continue
            found.setdefault(str(event.trial), []).append(event.metrics["loss"])
            if event.step == 2:
                pack.close(event.trial)
    pack.shutdown()
    return {"losses": found, "rows": rows, "most": most}


def solo(trial: TrialSpec) -> dict[str, Any]:
    load = workload()
    runtime = Runtime(
        model=tiny_model("bert"),
        tokenizer=load.tokenizer,
        task=load.task,
        train_rows=load.train_rows,
        evaluation_rows=load.evaluation_rows,
        device=torch.device("cpu"),
    )
    training = SoloTrial(trial, runtime)
    losses = [item.metrics["loss"] for item in train(training)]
    return {"losses": losses, "rows": training.micro_batch}


def main(output: Path) -> None:
    torch.set_num_threads(1)
    TOKEN_BUDGET["cpu"] = 10**6  # a batch is one part, unless memory is short
    solo(SMALL)  # what is allocated once is there
    packs = {name: host(output / name) for name in ("huge", "short", "calm")}
    found: dict[str, Any] = {}
    with memory(24 * 2**20):
        found["solo short"] = solo(WIDE)
    with memory(24 * 2**20):
        found["packed short"] = packed(packs["short"], [SMALL, WIDE])
    with memory(24 * 2**20):
        found["beside huge"] = packed(packs["huge"], [SMALL, HUGE])
    found["solo"], found["packed"] = solo(WIDE), packed(packs["calm"], [SMALL, WIDE])
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
