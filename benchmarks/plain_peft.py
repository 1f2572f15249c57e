"""The opponent and the oracle: one trial trained by an ordinary loop over real PEFT and `torch.optim.AdamW`.

Nothing of `automl.packed` or of the solo trainer is used for training here, but for the rows' order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from automl.errors import OutOfMemory, is_out_of_memory
from automl.methods.noise import NoisyRows, noisy, step_noise
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets
from automl.packed import PackedTrainer, Workload
from automl.packed.bank import BankSize
from automl.tasks.batches import batch_rows, evaluation_batches
from automl.trial import StopReason, TrialSpec

TOLERANCE = {"cpu": 1e-6, "cuda": 1e-5}
"""Largest relative difference of a fp32 loss to PEFT's, by type of device; cuBLAS picks other kernels for a pack."""

REDUCED_TOLERANCE = 2e-2
"""Largest relative difference for bf16h, which is another numeric and is only bounded."""


class PlainPeft:
    """One trial alone on the model. Optimizer, schedule, clipping and dropout as any user of PEFT has them.

    own_masks: dropout draws from the trial's generator, as the packed trainer's does, so that losses can be compared
    number by number; otherwise it is torch's own. autocast: the type to compute in, None = the model's. is_fast: a
    fused optimizer, and of a language model the loss that it computes itself, as who cares for speed has them; for rows
    of which every token is a target.
    """

    def __init__(
        self,
        model: nn.Module,
        load: Workload,
        trial: TrialSpec,
        *,
        own_masks: bool = False,
        autocast: torch.dtype | None = None,
        is_fast: bool = False,
    ) -> None:
        hyper = trial.hyper
        self.trial = trial
        self.step = 0
        self._load = load
        self._autocast = autocast
        self._is_fast = is_fast
        self._device = next(model.parameters()).device
        self._method = METHODS["lora"]
        layers = [layer.path for layer in resolve_targets(model, hyper.target)]
        self.model: Any = self._method.attach(model, hyper, layers, head_modules(model), trial.seed)
        if not own_masks:
            _with_torch_dropout(self.model, hyper.dropout)
        named = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self._parameters = list(named.values())
        rates = {name: self._method.rate(name, hyper) for name in named}
        groups = [
            {"params": [named[name] for name in named if rates[name] == rate], "lr": rate * hyper.learning_rate}
            for rate in dict.fromkeys(rates.values())
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=hyper.weight_decay, fused=is_fast or None)
        self._schedule = _schedule(self._optimizer, trial)
        self.model.train()

    def take_step(self) -> Tensor:
        """One optimizer step; returns its mean loss, without waiting for the device."""
        load, hyper = self._load, self.trial.hyper
        chosen = batch_rows(self.trial.data_seed, self.step, hyper.batch_size, len(load.train_rows))
        batch = self._on_device(
            load.task.collate([load.train_rows[index] for index in chosen], load.tokenizer.pad_token_id)
        )
        noise = step_noise(hyper.neftune_alpha, self.trial.seed, self.step, self._device)
        rows = [NoisyRows(noise, 0, batch["attention_mask"])] if noise else []
        with self._casting(), noisy(self.model.get_base_model(), rows):
            loss = self._loss(batch)
        torch.autograd.backward(loss)
        if hyper.clip > 0:
            nn.utils.clip_grad_norm_(self._parameters, hyper.clip)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self._is_fast and "attention_mask" in batch and batch["labels"].dim() > 1:
            found: Tensor = self.model(**batch).loss
            return found
        parts = self._load.task.loss(self.model, batch)
        return parts.total / parts.count

    def evaluate(self) -> dict[str, float]:
        """All metrics over the evaluation rows."""
        load = self._load
        batches = evaluation_batches(
            load.task,
            load.evaluation_rows,
            range(len(load.evaluation_rows)),
            pad_id=load.tokenizer.pad_token_id,
            max_tokens=load.evaluation_tokens,
        )
        self.model.eval()
        with torch.no_grad(), self._casting():
            metrics = load.task.evaluate(self.model, map(self._on_device, batches), load.tokenizer)
        self.model.train()
        return metrics

    def close(self) -> None:
        """Give the model back as it was."""
        self._method.detach(self.model)

    def _casting(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None)

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in batch.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """How far packed losses are from those of separate PEFT runs: the largest relative difference over all steps.

    precision: the pack's; PEFT ran in float32. kernel: that the pack ran on. graphs: shapes of micro-steps that were
    replayed from CUDA graphs.
    """

    precision: str
    kernel: str
    trials: int
    steps: int
    difference: float
    tolerance: float
    graphs: int = 0

    @property
    def holds(self) -> bool:
        """Whether ratios may be stated for this setting."""
        return self.difference <= self.tolerance

    def text(self) -> str:
        """One line for a person."""
        verdict = "holds" if self.holds else "FAILS: no ratio is given"
        extent = f"{self.trials} trials x {self.steps} steps"
        return (
            f"oracle {self.precision} ({self.kernel}): largest relative difference of a loss to PEFT's "
            f"{self.difference:.1e} over {extent}, allowed {self.tolerance:.0e}: {verdict}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for the report."""
        return asdict(self) | {"holds": self.holds}


def exactness(
    model: nn.Module,
    load: Workload,
    trials: Sequence[TrialSpec],
    *,
    precision: str = "fp32",
    steps: int = 8,
    packed: nn.Module | None = None,
    bank: BankSize | None = None,
) -> Exactness:
    """Train these trials packed and one after the other with PEFT, on the same model, and compare every loss.

    The model is in float32 and is given back as it was. packed: the same model in another type, for the pack. bank: as
    in `PackedTrainer`; its dropout masks are not PEFT's, so trials must have none then. Raises RuntimeError if a packed
    trial fails.
    """
    alone = {trial.number: _losses_alone(model, load, trial, steps) for trial in trials}
    found, kernel, graphs = _losses_packed(packed or model, load, trials, precision, steps, bank)
    differences = [
        abs(ours - theirs) / abs(theirs)
        for number in alone
        for ours, theirs in zip(found[number], alone[number], strict=True)
    ]
    device = next(model.parameters()).device.type
    return Exactness(
        precision=precision,
        kernel=kernel,
        trials=len(trials),
        steps=steps,
        difference=math.inf if any(map(math.isnan, differences)) else max(differences),
        tolerance=TOLERANCE.get(device, TOLERANCE["cpu"]) if precision == "fp32" else REDUCED_TOLERANCE,
        graphs=graphs,
    )


def run_rounds(trainer: PackedTrainer, rounds: int) -> None:
    """Take `rounds` optimizer steps of every member, each of them in the passes that it was meant to share.

    Raises OutOfMemory if memory was short, so that a pass was divided or a trial failed, and RuntimeError if something
    else was in the way: the time of either would be that of something else.
    """
    for _ in range(rounds):
        for failure in trainer.round(list(trainer.members.values())):
            kind = OutOfMemory if failure.reason is StopReason.OOM else RuntimeError
            raise kind(f"packed trial {failure.trial} failed: {failure.message}")
    if trainer.parted:
        kind = OutOfMemory if is_out_of_memory(RuntimeError(trainer.parted)) else RuntimeError
        raise kind(f"a micro-step of several trials failed: {trainer.parted}")
    if any(member.micro_batch < member.spec.hyper.batch_size for member in trainer.members.values()):
        raise OutOfMemory("memory was too short for the batch of a step")


def _losses_alone(model: nn.Module, load: Workload, trial: TrialSpec, steps: int) -> list[float]:
    run = PlainPeft(model, load, trial, own_masks=True)
    try:
        return [float(run.take_step()) for _ in range(steps)]
    finally:
        run.close()


def _losses_packed(
    model: nn.Module,
    load: Workload,
    trials: Sequence[TrialSpec],
    precision: str,
    steps: int,
    bank: BankSize | None,
) -> tuple[dict[int, list[float]], str, int]:
    """Losses by trial and step, the kernel, and the number of recorded shapes."""
    trainer = PackedTrainer(model, load, precision=precision, bank=bank)
    try:
        for trial in trials:
            trainer.admit(trial)
        losses: dict[int, list[float]] = {trial.number: [] for trial in trials}
        for _ in range(steps):
            run_rounds(trainer, 1)
            for number, member in trainer.members.items():
                losses[number].append(float(member.loss))
        return losses, trainer.kernel, trainer.bank_step.graphs if trainer.bank_step else 0
    finally:
        trainer.close()


def _with_torch_dropout(model: nn.Module, probability: float) -> None:
    if probability > 0:
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.lora_dropout["default"] = nn.Dropout(probability)


def _schedule(optimizer: torch.optim.Optimizer, trial: TrialSpec) -> Any:
    warmup = math.ceil(trial.hyper.warmup * trial.steps)
    if trial.hyper.schedule == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup)
    if trial.hyper.schedule == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup, trial.steps)
    return get_cosine_schedule_with_warmup(optimizer, warmup, trial.steps)
