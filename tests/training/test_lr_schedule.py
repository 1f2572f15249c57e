import pytest
import torch
import transformers

from automl.training.schedule import lr_multiplier

REFERENCE = {
    "constant": lambda optimizer, warmup, steps: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "warmup_steps"), [(0.0, 0), (0.06, 3), (0.5, 20), (1.0, 40)])
def test_follows_the_schedulers_of_transformers(schedule: str, warmup: float, warmup_steps: int) -> None:
    steps = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = REFERENCE[schedule](optimizer, warmup_steps, steps)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert lr_multiplier(step, steps=steps, warmup=warmup, schedule=schedule) == pytest.approx(expected, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_first_step_of_a_warmup_has_rate_zero() -> None:
    assert lr_multiplier(0, steps=100, warmup=0.06, schedule="linear") == 0.0
    assert lr_multiplier(6, steps=100, warmup=0.06, schedule="linear") == 1.0


def test_a_trial_of_one_step_without_warmup_trains() -> None:
    assert lr_multiplier(0, steps=1, warmup=0.0, schedule="cosine") == 1.0
