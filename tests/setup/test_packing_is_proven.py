"""A model whose rows mix in a pack is trained one trial at a time, and plan, log and record say why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.results.recorded import GROUND
from automl.setup.hosts import build_host
from automl.setup.machine import Layout
from automl.setup.packing import choose_packing, host_settings, prove
from automl.setup.plan import make_plan
from automl.setup.prepare import prepare
from automl.setup.setup import set_up
from automl.setup.together import set_up_together, worker_settings
from automl.space.load import load_space, load_spaces
from automl.space.spec import SweepSpec
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep
from automl.training.host import SoloHost
from tests.many_models import model_of
from tests.sweep.tiny_world import make_world

LAYOUT = Layout(workers=1, threads=1, device="cpu")
REASON = "the model mixes or splits rows"


@pytest.fixture
def mixing(tmp_path: Path) -> SweepSpec:
    """A sweep of two trials on every linear layer of a DeBERTa, four slots asked for."""
    return world_of("deberta-v2", tmp_path)


def world_of(name: str, folder: Path) -> SweepSpec:
    space = make_world(folder, trials=2, steps=5, slots=4)
    space.write_text(space.read_text().replace("target: qv", "target: all-linear"))
    (folder / "model" / "model.safetensors").unlink()
    model_of(name, "classification").save_pretrained(folder / "model")
    spec = load_space(space)
    return replace(spec, run=replace(spec.run, output=folder / "runs"), storage_url=f"sqlite:///{folder / 'a.db'}")


def test_a_search_trains_one_at_a_time_and_says_why(
    mixing: SweepSpec, shared_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run_sweep(mixing, shared_cache)

    assert summary.best is not None
    assert "trials are trained one at a time; packed, DebertaV2ForSequenceClassification would not" in caplog.text
    assert "failed" not in caplog.text  # what fails in the proof is no trial of the study
    with open_database(mixing.storage_url, create=False) as database:
        packing = (database.store(mixing.study).last_event(GROUND) or {})["packing"]
    assert packing["slots"] == 4
    assert REASON in packing["solo"]


def test_the_plan_says_why(mixing: SweepSpec, shared_cache: Path) -> None:
    assert any(REASON in line for line in make_plan(mixing, shared_cache, probe=True).lines())
    # What is known is said without a probe, too.
    assert REASON in str(make_plan(mixing, shared_cache, probe=False).packing)


def test_a_model_that_follows_peft_is_packed(tmp_path: Path, shared_cache: Path) -> None:
    spec = world_of("falcon", tmp_path)
    assert make_plan(spec, shared_cache, probe=True).packing.is_packed


@pytest.mark.full  # a minute: 30 layers, in which rounding grows
def test_the_preset_for_smollm2_is_packed(shared_cache: Path) -> None:
    spec = load_space(Path(__file__).parents[2] / "search_spaces" / "smollm2-instruct.yaml")
    assert make_plan(spec, shared_cache, probe=True).packing.is_packed


def test_a_worker_that_finds_out_alone_does_without_a_pack(mixing: SweepSpec, tmp_path: Path) -> None:
    # As on a node of another kind than the driver's: nothing is remembered there.
    inputs = prepare(mixing, tmp_path / "cache")
    settings = host_settings(mixing, inputs, LAYOUT, choose_packing(mixing, inputs, LAYOUT))
    assert settings.packed

    host = build_host(settings)

    assert isinstance(host, SoloHost)
    assert host.capacity == 4
    host.shutdown()


def test_a_precision_for_packs_alone_is_refused(mixing: SweepSpec, shared_cache: Path) -> None:
    spec = replace(mixing, run=replace(mixing.run, precision="bf16h"))
    inputs = prepare(spec, shared_cache)

    with pytest.raises(
        ConfigError, match=r"precision: bf16h is for packed training; packed, DebertaV2.* would not follow PEFT"
    ):
        prove(spec, inputs, LAYOUT)


TASKS = """\
tasks:
  - {name: plain, type: classification, data: ./data.jsonl, metric: accuracy, fixed: {target: mlp}}
  - {name: mixing, type: classification, data: ./data.jsonl, metric: accuracy, fixed: {target: all-linear}}
"""


@pytest.fixture
def customers(tmp_path: Path) -> list[SweepSpec]:
    """Two tasks with one model, which packing follows for the target set of the first alone."""
    world_of("deberta-v2", tmp_path)
    space = tmp_path / "space.yaml"
    text = space.read_text()
    begin, end = text.index("task:"), text.index("space:")
    space.write_text(text[:begin] + TASKS + text[end:].replace("target: all-linear, ", ""))
    return load_spaces(space)


def test_packing_is_proven_for_every_task(customers: list[SweepSpec], shared_cache: Path) -> None:
    alone = set_up(customers[0], shared_cache, layout=LAYOUT)
    assert alone.packing.is_packed
    together = set_up_together(customers, shared_cache, [None, None], layout=LAYOUT)
    assert [setup.packing.is_packed for setup in together] == [False, False]
    assert REASON in together[0].packing.solo


def test_what_one_task_cannot_be_packed_in_is_the_precision_of_none(
    customers: list[SweepSpec], shared_cache: Path
) -> None:
    # `auto` may choose bf16h for the first, which is for packs alone.
    specs = [replace(spec, run=replace(spec.run, precision="auto")) for spec in customers]
    together = set_up_together(specs, shared_cache, [None, None], layout=LAYOUT)
    assert [(setup.spec.run.precision, setup.packing.is_packed) for setup in together] == [("fp32", False)] * 2
    with pytest.raises(ConfigError, match=r"mixing: run\.precision: bf16h is for packed training"):
        set_up_together([_in_bf16h(spec) for spec in specs], shared_cache, [None, None], layout=LAYOUT)


def _in_bf16h(spec: SweepSpec) -> SweepSpec:
    return replace(spec, run=replace(spec.run, precision="bf16h"))


def test_a_worker_holds_packing_of_every_task_against_peft(customers: list[SweepSpec], shared_cache: Path) -> None:
    setups = [set_up(spec, shared_cache, layout=LAYOUT, is_thorough=False) for spec in customers]
    settings = worker_settings([replace(setup, packing=setups[0].packing) for setup in setups])
    own = replace(settings, choices=setups[0].worker_settings().choices)  # else the first task stands for all
    host = build_host(own)
    assert isinstance(host, SoloHost)
    host.shutdown()
