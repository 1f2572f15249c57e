"""How the machine is shared out: what `run:` fixes is kept, the rest is measured once and then stays."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from automl.errors import ResourceError
from automl.setup.cores import choose, measure, splits
from automl.setup.machine import Layout, choose_layout
from automl.setup.plan import make_plan
from automl.setup.setup import for_one_trial, set_up
from automl.space.load import load_space
from automl.space.spec import RunSettings
from tests.sweep.tiny_world import make_world

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("cores", "most", "expected"),
    [
        (1, 4, [(1, 1)]),
        (2, 4, [(2, 1), (1, 2)]),
        (6, 4, [(4, 1), (2, 3), (1, 6)]),
        (64, 4, [(4, 16), (2, 32), (1, 64)]),
        (8, 3, [(2, 4), (1, 8)]),
    ],
)
def test_splits_give_every_worker_the_same_part(cores: int, most: int, expected: list[tuple[int, int]]) -> None:
    assert splits(cores, most) == expected


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({(2, 1): 100.0, (1, 2): 90.0}, (2, 1)),
        ({(2, 1): 100.0, (1, 2): 114.0}, (2, 1)),
        ({(2, 1): 100.0, (1, 2): 120.0}, (1, 2)),
        ({(4, 1): 100.0, (2, 2): 130.0, (1, 4): 140.0}, (2, 2)),
    ],
)
def test_fewer_workers_only_if_that_is_clearly_faster(
    rates: dict[tuple[int, int], float], expected: tuple[int, int]
) -> None:
    assert choose(rates) == expected


def test_measuring_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    rates = measure(splits(2, 2))
    assert list(rates) == [(2, 1), (1, 2)]
    assert all(rate > 0 for rate in rates.values())
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("run", "trials", "expected"),
    [
        ({"workers": 3}, 9, (3, max(1, CORES // 3))),
        ({"workers": 3, "threads": 5}, 9, (3, 5)),
        ({"workers": 3}, 2, (2, max(1, CORES // 2))),
        ({"executor": "inline"}, 9, (1, CORES)),
        ({}, 1, (1, CORES)),
    ],
)
def test_what_is_fixed_is_kept_and_nothing_measured(
    run: dict[str, Any], trials: int, expected: tuple[int, int]
) -> None:
    layout = choose_layout(RunSettings(device="cpu", **run), trials=trials)
    assert (layout.workers, layout.threads, layout.device, layout.rates) == (*expected, "cpu", {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU itself")
def test_gpus_of_a_cluster_count_and_not_those_of_this_machine() -> None:
    cluster = RunSettings(device="cuda", executor="ray", address="head:6379", workers=3, threads=2)
    layout = choose_layout(cluster, trials=9)
    assert (layout.workers, layout.threads, layout.device, layout.gpus_per_worker) == (3, 2, "cuda", 1)
    assert not layout.is_here
    assert choose_layout(replace(cluster, workers=None), trials=9).workers == 1
    assert choose_layout(replace(cluster, shards=4), trials=9).shards == 4
    with pytest.raises(ResourceError, match=r"run.device: cuda .* or a cluster that has some \(run.address\)"):
        choose_layout(replace(cluster, address=None), trials=9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU itself")
def test_a_search_on_gpus_of_a_cluster_is_set_up_without_one(tmp_path: Path, shared_cache: Path) -> None:
    spec = load_space(make_world(tmp_path, executor="ray", trials=12))
    run = replace(spec.run, device="cuda", address="head:6379", precision="auto")
    setup = set_up(replace(spec, run=run), shared_cache)
    settings = setup.worker_settings()
    assert (settings.device, settings.precision, settings.capacity, settings.packed) == ("cuda", "bf16", 8, True)
    own = for_one_trial(setup.spec).run  # what this process trains or merges, it does here
    assert (own.device, own.address, own.executor) == ("cpu", None, "inline")
    assert any("cuda" in line for line in make_plan(replace(spec, run=run), shared_cache, probe=True).lines())


def test_a_recorded_layout_is_kept_on_a_machine_like_the_first() -> None:
    settings = RunSettings(device="cpu", executor="ray")
    recorded = Layout(workers=1, threads=7, device="cpu", cores=CORES, rates={"1 x 7": 3.0})
    if CORES > 1:
        assert choose_layout(settings, trials=9, recorded=recorded.as_dict()) == recorded
    other = Layout(workers=1, threads=7, device="cpu", cores=CORES + 1)
    assert choose_layout(settings, trials=9, recorded=other.as_dict()).threads <= CORES
