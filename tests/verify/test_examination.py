"""What a host finds out of a finished trial besides its metrics: the same packed and solo, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from automl.importance.cuts import even_ranks, global_ranks
from automl.lora import Hyperparameters
from automl.outcomes import Outcomes, decoded, encoded
from automl.packed.build import build_packed_host
from automl.packed.host import PackedHost
from automl.setup.machine import Layout
from automl.setup.packing import Packing, host_settings
from automl.setup.prepare import prepare
from automl.space.load import load_space
from automl.training.cut import TurnedAdapter
from automl.training.examine import SEEN_ROWS
from automl.training.host import SoloHost, build_solo_host
from automl.training.runtime import HostSettings, load_runtime
from automl.trial import Cut, Examination, Measurement, TrialSpec
from tests.sweep.tiny_world import make_world

STEPS = 30
HYPER = Hyperparameters(rank=6, alpha=12.0, target="all-linear", learning_rate=0.01, batch_size=8)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> HostSettings:
    folder = tmp_path_factory.mktemp("examined")
    spec = load_space(make_world(folder, trials=1, steps=STEPS))
    inputs = prepare(spec, folder / "cache")
    made = host_settings(spec, inputs, Layout(workers=1, threads=1, device="cpu"), Packing(slots=2))
    return replace(made, prepared=inputs.prepared, judged_on="test", importance=False)


def cuts(*names: tuple[str, int, bool]) -> Examination:
    found = tuple(Cut(name, parameters, even) for name, parameters, even in names)
    return Examination("test", cuts=found, by_row=True, on_validation=True)


def spec(examination: Examination | None, number: int = 0) -> TrialSpec:
    return TrialSpec(
        number=number,
        params={},
        hyper=HYPER,
        seed=7,
        data_seed=8,
        steps=STEPS,
        evaluate_every=STEPS,
        examination=examination,
    )


def finished(host: PackedHost | SoloHost, wanted: TrialSpec) -> Measurement:
    host.open(wanted)
    while True:
        for found in host.advance():
            assert isinstance(found, Measurement), found
            if found.step == STEPS:
                return found


@pytest.mark.parametrize("build", [build_solo_host, build_packed_host])
def test_cuts_are_those_of_the_exported_adapter(
    settings: HostSettings, tmp_path: Path, build: Callable[[HostSettings], PackedHost | SoloHost]
) -> None:
    here = replace(settings, output=str(tmp_path), packed=build is build_packed_host)
    host = build(here)
    plain = finished(host, spec(None))
    host.close(0)
    runtime = load_runtime(settings)
    assert plain.adapter is not None
    turned = TurnedAdapter(Path(plain.adapter), runtime, runtime.train_rows[:SEEN_ROWS])
    one = sum(turned.costs)
    small = int(0.5 * one)
    asked = cuts(("whole", 6 * one, False), ("small", small, False), ("even", 2 * one, True))
    found = finished(host, spec(asked, number=1))
    assert found.metrics == plain.metrics
    by_name = {each.name: each for each in found.examined}
    assert set(by_name) == {"", "whole", "small", "even"}
    ranks = {"small": global_ranks(turned.strengths, turned.costs, small), "even": even_ranks(turned.strengths, 2)}
    for name, of_cut in ranks.items():
        turned.cut(of_cut)
        wanted = runtime.evaluate(turned.model, runtime.evaluation_rows, runtime.evaluation_tokens)
        assert dict(by_name[name].metrics) == pytest.approx(wanted, rel=1e-4), name
    assert dict(by_name["whole"].metrics) == pytest.approx(dict(found.metrics), rel=1e-5)
    assert by_name["small"].metrics["loss"] > found.metrics["loss"] + 1e-3  # half of rank 1 is too little
    assert sum(decoded(by_name["small"].outcomes).rows) / len(runtime.evaluation_rows) == pytest.approx(
        by_name["small"].metrics["accuracy"]
    )
    host.shutdown()


def test_the_trial_is_what_it_was_and_a_restart_knows_what_was_found(settings: HostSettings, tmp_path: Path) -> None:
    states = []
    for packed, build in ((True, build_packed_host), (False, build_solo_host)):
        here = replace(settings, output=str(tmp_path / str(packed)), packed=packed)
        host = build(here)
        asked = cuts(("small", 200, False))
        finished(host, spec(None))
        found = finished(host, spec(asked, number=1))
        folders = [Path(here.output) / f"slots/trial-{number:05d}/step-{STEPS:08d}" for number in (0, 1)]
        states.append([(folder / "params.safetensors").read_bytes() for folder in folders])
        assert states[-1][0] == states[-1][1]
        host.shutdown()
        again = build(here)
        (*_, known) = again.open(replace(spec(asked, number=1), attempt=2))
        assert known.examined == found.examined
        again.shutdown()


def test_outcomes_survive_the_database() -> None:
    classes = Outcomes("classes", [0, 3, 999, 3])
    assert list(decoded(encoded(classes)).rows) == [0, 3, 999, 3]
    values = Outcomes("values", [0.1, 2.5, -3e4])
    back = decoded(encoded(values))
    assert (back.kind, list(back.rows)) == ("values", pytest.approx(values.rows, rel=1e-6))
    assert len(encoded(Outcomes("values", [1.0, 0.0] * 500))) < 300
    with pytest.raises(ValueError, match="unknown kind 'texts'"):
        decoded("texts:abc")
