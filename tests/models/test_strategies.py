"""The arithmetic of model states against the figures that papers and courses give."""

from __future__ import annotations

import pytest

from automl.models.strategies import RECIPES, STRATEGIES, States, Strategy, buffers, split, states

GB = 10**9
MIXED = RECIPES["bf16"]


def whole(parameters: float, precision: str = "bf16") -> States:
    return states(0, round(parameters), RECIPES[precision])


@pytest.mark.parametrize(
    ("billions", "devices", "expected"),
    [
        # Rajbhandari et al. 2020, figure 1: 7.5 B on 64 devices
        (7.5, 64, {"data-parallel": 120, "zero-1": 31.4, "zero-2": 16.6, "zero-3": 1.9}),
        # the same, table 1: 7.5 B and 128 B
        (7.5, 4, {"zero-1": 52.5, "zero-2": 41.3, "zero-3": 30}),
        (128, 1024, {"data-parallel": 2048, "zero-1": 513, "zero-2": 257, "zero-3": 2}),
        # courses: 7 B on 8 devices, 2 + 2 + 12 bytes
        (7, 8, {"data-parallel": 112, "zero-1": 38.5, "zero-2": 26.25, "zero-3": 14}),
    ],
)
def test_sharded_states_are_those_of_the_zero_paper(
    billions: float, devices: int, expected: dict[Strategy, float]
) -> None:
    for strategy, gigabytes in expected.items():
        found = split(whole(billions * GB), strategy, devices).device.total / GB
        assert found == pytest.approx(gigabytes, rel=0.005, abs=0.05), strategy


def test_full_training_takes_four_times_the_weights_in_float32() -> None:
    six = whole(6 * GB, "fp32")
    assert six.trained == 24 * GB
    assert six.total == 4 * six.trained
    assert whole(7 * GB).total == 112 * GB  # Alpaca's README: 7 x 4 x 4 = 112 GB


def test_offloading_leaves_the_weights_of_16_bits_alone() -> None:
    """ZeRO-Offload, section 3: 2 of 16 bytes per parameter stay on the device."""
    part = split(whole(10 * GB), "offload", 1)
    assert (part.device.total, part.host.total) == (20 * GB, 140 * GB)
    sharded = split(whole(10 * GB), "zero-3-offload", 8)
    assert sharded.device.total == 0
    assert sharded.host.total == 20 * GB


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_lost_between_devices_and_host(strategy: Strategy) -> None:
    model = states(13_000_001, 1_000_003, MIXED)
    part = split(model, strategy, 3)
    assert 3 * (part.device.total + part.host.total) >= model.total
    alone = split(model, strategy, 1)
    assert alone.device.total + alone.host.total == model.total


def test_what_travels_has_room() -> None:
    model = whole(7 * GB)
    sizes = {each: buffers(model, each, largest_block=GB // 2, gradient_width=2) for each in STRATEGIES}
    assert sizes["one-device"] == 0
    assert sizes["data-parallel"] == model.gradients
    assert sizes["zero-1"] == sizes["zero-2"] == GB
    assert sizes["zero-3"] == GB
