"""What the tests of sharded hosts share: two processes that form a group, and a trial trained by whatever host."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from automl.training.host import SoloHost
from automl.trial import Measurement, TrialFailure, TrialSpec
from tests.databases import free_port
from tests.fresh import ROOT, run_python

_AS_PEERS = """
import pickle, sys
from torch import multiprocessing
peer, *arguments = pickle.load(open(sys.argv[1], "rb"))
multiprocessing.start_processes(peer, tuple(arguments), nprocs=2, start_method="fork")
"""


def in_two_processes(peer: Callable[..., None], cases: Any, results: Path) -> list[dict[str, Any]]:
    """What either process says. peer: of a module, called with rank, port, cases and results; it joins and leaves."""
    arguments = results / "arguments.pickle"
    arguments.write_bytes(pickle.dumps((peer, free_port(), cases, results)))
    done = run_python("-c", _AS_PEERS, arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads((results / f"{rank}.json").read_text("utf-8")) for rank in range(2)]


def join(rank: int, port: int) -> None:
    """Become the process of this rank of two."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)


def leave(said: dict[str, Any], results: Path) -> None:
    """Leave the group, and behind what is to be known of it."""
    (results / f"{distributed.get_rank()}.json").write_text(json.dumps(said), encoding="utf-8")
    distributed.destroy_process_group()


def train(host: SoloHost, spec: TrialSpec, *, interrupted: bool = False) -> list[Measurement | TrialFailure]:
    """To the end, or parked and opened again after the first measurement."""
    news: list[Measurement | TrialFailure] = [*host.open(spec), *host.advance()]
    if interrupted:
        host.park(spec.number)
        assert [item.step for item in host.open(spec)] == [news[-1].step]
    while isinstance(news[-1], Measurement) and news[-1].step < spec.steps:
        news += host.advance()
    host.park(spec.number)
    return news
