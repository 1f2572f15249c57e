"""Every method is killed by SIGKILL, goes on to the bit, and reproduces its metrics in a fresh process.

As it is on a small Llama with biases, which all of them can adapt; with every value that is tried of its settings on
other models, one of them quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from torch import nn
from transformers import LlamaForCausalLM

from automl.methods.registry import METHODS
from automl.testing.whole_way import SAME, SAME_HELD, Case, Walk, cases, tuner_case, walk
from automl.training.runtime import HostSettings
from tests.architectures import tiny_config
from tests.methods.lively import enlivened, lively_model
from tests.training.quantised_cases import NF4, quantised_settings
from tests.training.training_cases import host_settings, write_backbone

CASES = cases()


def lively(folder: Path, architecture: str, kind: str) -> HostSettings:
    return settled(folder, architecture, kind, lively_model(architecture, kind=kind))


def with_biases(folder: Path) -> HostSettings:
    """A Llama whose attention has biases, as that of Qwen 2, for BitFit."""
    config = tiny_config("llama")
    config.attention_bias = True
    return settled(folder, "llama", "causal-lm", enlivened(LlamaForCausalLM(config)))


def settled(folder: Path, architecture: str, kind: str, model: nn.Module) -> HostSettings:
    write_backbone(folder / "model", architecture, model=model)
    return host_settings(folder, architecture=architecture, kind=kind)


PLACES: Mapping[str, Callable[[Path], HostSettings]] = {
    "bert": lambda folder: lively(folder, "bert", "classification"),
    "llama": lambda folder: lively(folder, "llama", "causal-lm"),
    "llama in 4 bits": lambda folder: quantised_settings(folder, "llama", NF4, kind="completion"),
}


def check(found: Walk, same: float) -> None:
    assert not found.fault
    assert found.parameters > 0
    assert found.losses[0] != found.losses[1]
    assert found.is_same
    assert found.off <= same


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    """Every method as it is, and one of PEFT's tuners, by name."""
    settings = with_biases(tmp_path_factory.mktemp("biases"))
    return {each.case.method: each for each in walk(settings, [*map(as_it_is, METHODS), tuner_case("vera")])}


def as_it_is(method: str) -> Case:
    return Case(method=method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "peft:vera"])
def test_a_method_goes_the_whole_way(plain: Mapping[str, Walk], method: str) -> None:
    assert not plain[method].refused
    check(plain[method], SAME)


@pytest.fixture(scope="module", params=PLACES)
def walks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Walk]:
    """What became of every case on a model."""
    settings = PLACES[request.param](tmp_path_factory.mktemp("place"))
    return {each.case: each for each in walk(settings, CASES)}


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_so_it_does_with_every_setting(walks: Mapping[Case, Walk], case: Case, request: pytest.FixtureRequest) -> None:
    found = walks[case]
    if found.refused:
        assert "\n" not in found.refused
        return
    check(found, SAME_HELD if "4 bits" in request.node.name else SAME)


def test_it_is_walked_with_what_is_registered() -> None:
    named = {str(case) for case in CASES}
    assert {
        *METHODS,
        "lora init=pissa",
        "lora init=eva",
        "prefix prefix_projection=True",
        "prompt virtual_tokens=4",
        "peft:vera",
        "peft:loha loha.r=3",
        "peft:oft oft.oft_block_size=4",
    } <= named
