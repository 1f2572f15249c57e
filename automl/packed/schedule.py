"""The learning rate of every step, as a multiplier of the trial's base rate."""

from __future__ import annotations

import math

from automl.lora import ScheduleName


def lr_multiplier(step: int, *, steps: int, warmup: float, schedule: ScheduleName) -> float:
    """Factor in [0, 1] on the learning rate of optimizer step `step` (from 0) of a trial of `steps` steps.

    Linear warm-up over ceil(warmup * steps) steps, the first of them at 0; then constant, or down to 0 at `steps`,
    linearly or along half a cosine. `steps` is the full length of the trial, never a rung of the pruner, so a pruned
    trial is the beginning of the finished one. Source: what `LambdaLR` does with the lambdas of
    transformers/optimization.py (get_constant_schedule_with_warmup, get_linear_..., get_cosine_...).
    """
    warmup_steps = math.ceil(warmup * steps)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
