"""The proof that packing follows PEFT, made before it is used: two unlike adapters, two batches of real rows.

Whether the rows of several trials can go through one pass depends on what a model does between its layers: some send
position tables through an adapted layer, some are time-major, some normalise over the whole batch. No list of names is
kept; the model is asked. Both adapters are drawn so large that a row in the wrong hands would show: an adapter as it
is initialised changes nothing at all, and whatever is mixed up then agrees.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from automl.errors import CheckpointError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.seeding import stream
from automl.models.inventory import resolve_targets
from automl.packed.bank import BankSize
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.tasks.batches import batch_rows
from automl.tasks.reference import unreferred
from automl.training.memory import TOKEN_BUDGET
from automl.training.runtime import Runtime
from automl.training.solo import SoloTrial
from automl.training.state import TrainState
from automl.trial import TrialSpec


class Tolerance(NamedTuple):
    """Largest relative differences to PEFT.

    loss: at the first step. later: of a loss after a step, in which AdamW has made steps of full length of gradients
    that are rounding alone. visible: least relative effect of an adapter on the loss.
    """

    loss: float
    later: float
    gradient: float
    visible: float


TOLERANCES = {
    # Sums in another order: 1e-7 for a loss, some 1e-6 for the gradient of one matrix. SmolLM2-135M: 3e-6, 3e-5 later.
    "fp32": Tolerance(loss=1e-5, later=1e-4, gradient=1e-3, visible=3e-4),
    # Eight bits of mantissa: PEFT differs by 1e-2 from itself with the same rows in another batch.
    "bf16": Tolerance(loss=2e-2, later=2e-2, gradient=0.2, visible=0.1),
}
"""Tolerances by precision. bf16h is proven in fp32: it rounds inside of a layer, and sends no row elsewhere."""

STRENGTHS = (0.3, 1.0, 3.0)
"""Size of an adapter's update relative to its layer's input; the first that shows in the loss is taken."""

_STEPS = 2
_ROWS = 2  # of a batch
_LOOKED_AT = 512  # rows among which long ones are sought
_SEEDS = 24  # orders of the rows among which two are sought whose batches have the same shape
_EVERYTHING = "every target"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One adapter trained by PEFT alone.

    start: its weights before. losses: at every step. moments: AdamW's, afterwards.
    bare, adapted: losses of batches that are the same for both adapters, without and with the low-rank updates.
    """

    spec: TrialSpec
    start: TrainState
    losses: list[float]
    moments: dict[str, Tensor]
    bare: list[float]
    adapted: list[float]


def disproof(
    runtime: Runtime,
    choices: Sequence[str],
    *,
    bank: bool,
    recompute: bool,
    kernel: str | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> str:
    """Why trials on these target sets are not to be packed on this model, in one line; empty if packing follows PEFT.

    bank, recompute, kernel: the path that the pack will take. The model is given back as it was. Raises OutOfMemory.
    """
    if runtime.precision == "bf16h":
        runtime = replace(runtime, precision="fp32")
    tolerance = _tolerance(runtime)
    runtime = _small(runtime, choices)
    specs = _specs(runtime)
    for strength in strengths:
        alone = [_alone(spec, runtime, strength) for spec in specs]
        if _shows(alone, tolerance):
            break
    else:
        return "adapters hardly change this model's loss, so packing cannot be held against PEFT"
    trainer = PackedTrainer(
        runtime.model,
        Workload(
            task=runtime.task,
            train_rows=runtime.train_rows,
            evaluation_rows=[],
            tokenizer=runtime.tokenizer,
        ),
        targets=runtime.targets,
        precision=runtime.precision,
        kernel=kernel,
        token_budget=2**31,
        bank=BankSize(2, max(spec.hyper.rank for spec in specs), (_EVERYTHING,)) if bank else None,
        recompute=recompute,
    )
    try:
        with _unheard(PackedTrainer.__module__):
            return _compared(trainer, alone, tolerance)
    finally:
        trainer.close()


def _tolerance(runtime: Runtime) -> Tolerance:
    """That of the precision; in fp32 ten times as wide for losses that compare log-probabilities of whole texts.

    Those are hundreds of nats, and both they and their gradients largely cancel: rounding is 3e-5 of the difference and
    1.4e-3 of its gradient (SmolLM2-135M). An adapter has to show ten times as much then. Rows that are mixed up do.
    """
    found = TOLERANCES[runtime.precision]
    if not runtime.task.refers or runtime.precision != "fp32":
        return found
    return Tolerance(*(10 * each for each in found))


@contextmanager
def _unheard(name: str) -> Iterator[None]:
    """Trials that fail in a proof are nobody's trials: this module's log is silent meanwhile."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _small(runtime: Runtime, choices: Sequence[str]) -> Runtime:
    """The runtime with a few long and a few other rows, and a set of all layers that trials may adapt."""
    count, known = len(runtime.train_rows), unreferred(runtime.train_rows)
    lengths = {place: runtime.task.row_tokens(known[place]) for place in range(0, count, max(1, count // _LOOKED_AT))}
    places = sorted(lengths, key=lambda place: lengths[place])
    most = TOKEN_BUDGET.get(runtime.device.type, TOKEN_BUDGET["cpu"]) // (2 * _ROWS)
    places = [place for place in places if lengths[place] <= most] or places[:1]
    few = [runtime.train_rows[place] for place in (*places[:: max(1, len(places) // 4)][:4], *places[-4:])]
    layers = [layer for name in choices for layer in resolve_targets(runtime.model, name, runtime.targets)]
    every = tuple(dict.fromkeys(re.escape(layer.path) for layer in layers))
    return replace(runtime, train_rows=few, targets={**runtime.targets, _EVERYTHING: every}, importance=False)


def _specs(runtime: Runtime) -> list[TrialSpec]:
    """Two trials that differ in all that a slot may differ in, but for the shape of their batches."""
    one = Hyperparameters(
        rank=3,
        alpha=6.0,
        target=_EVERYTHING,
        learning_rate=1e-3,
        batch_size=_ROWS,
        warmup=0.0,
        schedule="constant",
        clip=0.0,
    )
    hypers = one, replace(one, rank=2, alpha=2.0, learning_rate=2e-3, use_rslora=True, clip=1.0)
    return [
        TrialSpec(
            number=number,
            params={},
            hyper=hyper,
            seed=11 + number,
            data_seed=seed,
            steps=_STEPS,
            evaluate_every=_STEPS,
        )
        for number, (hyper, seed) in enumerate(zip(hypers, _data_seeds(runtime), strict=True))
    ]


def _data_seeds(runtime: Runtime) -> tuple[int, int]:
    """Two orders of the rows whose batches have the same shapes, so that they share a pass, and differ if possible."""
    seen: dict[object, tuple[int, object]] = {}
    found: list[tuple[int, int, int]] = []
    for seed in range(_SEEDS):
        rows, shape, width = _batches(runtime, seed)
        other, others = seen.setdefault(shape, (seed, rows))
        if rows != others:
            found.append((width, other, seed))
    return max(found)[1:] if found else (0, 0)


def _batches(runtime: Runtime, seed: int) -> tuple[object, object, int]:
    """Numbers of the rows of every step, the classes of their batches, and the greatest width."""
    load = Workload(task=runtime.task, train_rows=[], evaluation_rows=[], tokenizer=runtime.tokenizer)
    numbers = [batch_rows(seed, step, _ROWS, len(runtime.train_rows)) for step in range(_STEPS)]
    micros = [load.micro_batch([runtime.train_rows[at] for at in batch], torch.device("cpu")) for batch in numbers]
    classes = [(micro.shape_class, micro.rows, tuple(micro.batch)) for micro in micros]
    return [sorted(batch) for batch in numbers], tuple(classes), max(micro.width for micro in micros)


def _alone(spec: TrialSpec, runtime: Runtime, strength: float) -> _Run:
    trial = SoloTrial(spec, runtime)
    trial.attach()
    try:
        fresh = trial.snapshot()
        start = replace(fresh, params=dict(_drawn(fresh, spec, strength)))
        bare = _losses(trial, start, without_updates=True)
        adapted = _losses(trial, start)
        losses = []
        for _ in range(_STEPS):
            trial.take_step()
            losses.append(trial.loss)
        return _Run(
            spec=spec,
            start=start,
            losses=losses,
            moments=dict(trial.snapshot().moments),
            bare=bare,
            adapted=adapted,
        )
    finally:
        trial.detach()


def _drawn(fresh: TrainState, spec: TrialSpec, strength: float) -> Iterator[tuple[str, Tensor]]:
    """Weights that matter, by name. An update of B A has about `strength` times the size of what it is added for."""
    generator = stream(spec.seed, "proof")
    for name, tensor in fresh.params.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if ".lora_B." in name:
            yield name, drawn * (strength * math.sqrt(3.0 / spec.hyper.rank) / spec.hyper.scaling)
        elif ".lora_A." in name or tensor.dim() < 2:
            yield name, tensor
        else:
            yield name, drawn / math.sqrt(tensor[0].numel())


def _losses(trial: SoloTrial, start: TrainState, *, without_updates: bool = False) -> list[float]:
    """Mean losses of all rows in batches, with these weights, which the trial has then."""
    runtime = trial.runtime
    params = {
        name: torch.zeros_like(tensor) if without_updates and ".lora_B." in name else tensor
        for name, tensor in start.params.items()
    }
    METHODS["lora"].load_state(trial.model, params)
    trial.model.eval()
    with torch.no_grad(), runtime.autocast():
        rows = range(0, len(runtime.train_rows), _ROWS)
        parts = [runtime.task.loss(trial.model, runtime.batch(runtime.train_rows[at : at + _ROWS])) for at in rows]
    return [float(part.total) / max(1, part.count) for part in parts]


def _shows(alone: Sequence[_Run], tolerance: Tolerance) -> bool:
    """Whether both adapters change losses by far more than is tolerated, each in its own way."""
    one, other = alone
    pairs = [(one.adapted, one.bare), (other.adapted, other.bare), (one.adapted, other.adapted)]
    return all(max(map(_relative, *pair)) >= tolerance.visible for pair in pairs)


def _compared(trainer: PackedTrainer, alone: Sequence[_Run], tolerance: Tolerance) -> str:
    try:
        for run in alone:
            trainer.admit(run.spec, run.start)
    except CheckpointError as error:
        return f"PEFT adapts other layers: {error}"
    members = list(trainer.members.values())
    for step in range(_STEPS):
        failures = trainer.micro_step(members)
        if trainer.parted or failures:
            return trainer.parted or _last_line(failures[0].message)
        allowed = tolerance.later if step else tolerance.loss
        for member, run in zip(members, alone, strict=True):
            if (difference := _relative(member.loss, run.losses[step])) > allowed:
                return f"a trial's loss differs from PEFT's by {difference:.1e}, {allowed:.0e} is allowed"
    for member, run in zip(members, alone, strict=True):
        difference, name = _worst_gradient(member.snapshot().moments, run.moments)
        if difference > tolerance.gradient:
            return f"a gradient differs from PEFT's by {difference:.1e} ({name})"
    return ""


def _worst_gradient(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[float, str]:
    """Largest relative difference of a matrix's mean gradient, and its name.

    Relative to a thousandth of the largest gradient at least: what should be zero is rounding alone.
    """
    norms = {key: float(tensor.norm()) for key, tensor in wanted.items() if key.startswith("exp_avg/")}
    least = max(1e-3 * max(norms.values()), 1e-30)
    return max((float((found[key] - wanted[key]).norm()) / max(norm, least), key) for key, norm in norms.items())


def _relative(one: float, other: float) -> float:
    """Infinite if either is not a number."""
    difference = abs(one - other) / max(abs(other), 1e-30)
    return difference if math.isfinite(difference) else math.inf


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
