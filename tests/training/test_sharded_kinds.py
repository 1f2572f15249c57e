"""Two processes train what one trains: in bf16, on weights of 4 bits, by other methods, judged by what is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from automl.models.plainly_held import hold_plainly
from automl.space.spec import Quantization
from automl.training.export import evaluate_export
from automl.training.host import build_solo_host
from automl.training.runtime import HostSettings, load_model
from automl.training.sharded import FullySharded, build_sharded_host, shard
from automl.trial import Measurement, TrialSpec
from tests.training.quantised_cases import DOUBLE, FP4, NF4, quantised_settings
from tests.training.sharded_cases import in_two_processes, join, leave, train
from tests.training.training_cases import trial_spec

pytestmark = pytest.mark.slow

EXACT, ROUNDED = 1e-5, 1e-2
"""Relative differences of losses after six steps: of sums in another order, and of products in bfloat16."""


@dataclass(frozen=True)
class Case:
    """A trial, how its backbone is held, and how near to one process two have to come."""

    kind: str = "classification"
    architecture: str = "llama"
    precision: str = "fp32"
    held: Quantization | None = None
    near: float = EXACT
    metric: str = ""
    hyper: dict[str, Any] = field(default_factory=dict)

    def settings(self, folder: Path) -> HostSettings:
        """Of two processes, over a model and data made in `folder`."""
        found = quantised_settings(
            folder, self.architecture, self.held, kind=self.kind, shards=2, precision=self.precision
        )
        return replace(found, task=replace(found.task, metric=self.metric)) if self.metric else found

    def spec(self) -> TrialSpec:
        """Clipped, so that the size of a gradient matters."""
        usual = {"dropout": 0.0, "batch_size": 5, "clip": 0.05}
        return trial_spec(1, steps=6, evaluate_every=3, **{**usual, **self.hyper})


CASES = {
    "bf16": Case(precision="bf16", near=ROUNDED, kind="causal-lm", hyper={"target": "all-linear"}),
    "bf16 with a head": Case(precision="bf16", near=ROUNDED, architecture="bert"),
    "nf4": Case(held=NF4, kind="causal-lm", hyper={"target": "all-linear"}),
    "nf4 with scales in 8 bits, in bf16": Case(
        held=DOUBLE, precision="bf16", near=ROUNDED, kind="causal-lm", hyper={"target": "all-linear"}
    ),
    "fp4 with biases": Case(held=FP4, architecture="bert"),
    "LoRA+": Case(hyper={"own": (("lora_plus_ratio", 4.0),)}),
    "A frozen": Case(hyper={"own": (("freeze_a", True),)}),
    "orthogonal": Case(hyper={"own": (("init", "orthogonal"),), "use_rslora": True}),
    "ia3 on nf4": Case(held=NF4, hyper={"method": "ia3"}),
    "adapter on nf4": Case(held=NF4, architecture="bert", hyper={"method": "adapter", "target": "all-linear"}),
    "adapter of its own settings": Case(
        architecture="bert",
        hyper={
            "method": "adapter",
            "target": "all-linear",
            "own": (
                ("adapter_activation", "gelu"),
                ("adapter_place", "houlsby"),
                ("adapter_scale", 2.0),
                ("adapter_size", 8),
            ),
        },
    ),
    "adapter beside": Case(
        hyper={"method": "adapter", "target": "all-linear", "own": (("adapter_place", "parallel"),)}
    ),
    "written": Case(kind="causal-lm", metric="exact_match"),
}


def peer(rank: int, port: int, cases: dict[str, HostSettings], results: Path) -> None:
    """One process of two: what it says of every case, and the bytes it holds of each type beside all there are."""
    join(rank, port)
    said: dict[str, Any] = {}
    for name, settings in cases.items():
        spec = CASES[name].spec()
        said[name] = {"news": [asdict(item) for item in train(build_sharded_host(settings), spec)]}
        said[name]["held"] = held(settings)
    leave(said, results)


def held(settings: HostSettings) -> dict[str, tuple[int, int]]:
    """Bytes of the frozen weights, by type: this process's, and all."""
    model = load_model(settings)
    hold_plainly(model)
    shard(model, FullySharded(torch.device("cpu")).mesh)
    found: dict[str, tuple[int, int]] = {}
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor)
        mine, whole = found.get(str(parameter.dtype), (0, 0))
        width = parameter.element_size()
        found[str(parameter.dtype)] = mine + parameter.to_local().nbytes, whole + parameter.numel() * width
    return found


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostSettings]:
    return {name: case.settings(tmp_path_factory.mktemp("case")) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def said(settings: dict[str, HostSettings], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(peer, settings, tmp_path_factory.mktemp("results"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
@pytest.mark.parametrize("name", CASES)
def test_two_processes_come_to_what_one_does(
    settings: dict[str, HostSettings], said: list[dict[str, Any]], name: str, tmp_path: Path
) -> None:
    case, spec = CASES[name], CASES[name].spec()
    expected = train(build_solo_host(replace(settings[name], shards=1, output=str(tmp_path))), spec)
    assert [item.step for item in expected] == [3, 6]
    assert expected[0].metrics["loss"] != pytest.approx(expected[1].metrics["loss"], rel=ROUNDED), "it learns"
    for process in said:
        news = process[name]["news"]
        assert [(item["step"], item["tokens"]) for item in news] == [(item.step, item.tokens) for item in expected]
        for item, other in zip(news, expected, strict=True):
            assert isinstance(other, Measurement)
            assert item["metrics"].keys() == other.metrics.keys()
            assert item["metrics"]["loss"] == pytest.approx(other.metrics["loss"], rel=case.near)
    assert said[0][name]["news"][-1]["metrics"] == said[1][name]["news"][-1]["metrics"]
    folder = Path(said[0][name]["news"][-1]["adapter"])
    measured = evaluate_export(folder, replace(settings[name], shards=1, output=str(folder)))
    assert measured["loss"] == pytest.approx(said[0][name]["news"][-1]["metrics"]["loss"], rel=case.near)


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("bf16", {"torch.bfloat16"}),
        ("nf4", {"torch.float8_e4m3fn", "torch.float32"}),
        ("nf4 with scales in 8 bits, in bf16", {"torch.float8_e4m3fn", "torch.bfloat16"}),
    ],
)
def test_each_process_holds_its_share_in_the_type_it_is_stored_in(
    said: list[dict[str, Any]], name: str, types: set[str]
) -> None:
    assert said[0][name]["held"].keys() == types
    for process in said:
        for mine, whole in process[name]["held"].values():
            assert mine == pytest.approx(whole / 2, rel=0.05)
