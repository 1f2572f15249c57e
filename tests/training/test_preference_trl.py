"""Twenty steps by TRL's own trainers from the same adapter on the same rows: losses and adapter agree to 1e-4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from automl.methods.registry import METHODS
from automl.models.inventory import resolve_targets
from automl.tasks.batches import batch_rows
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.solo import SoloTrial
from automl.trial import TrialSpec
from tests.training.preference_cases import messages_of, pairs, preference_settings, preference_spec, singles

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and of what it calls

STEPS = 20
ROWS = 12


def our_steps(settings: HostSettings, spec: TrialSpec) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of every step, and the adapter after the last one."""
    trial = SoloTrial(spec, load_runtime(settings))
    trial.attach()
    losses = []
    for _ in range(spec.steps):
        trial.take_step()
        losses.append(trial.loss)
    return losses, trial.snapshot().params


def their_steps(
    trainer_class: Any, config: Any, runtime: Runtime, spec: TrialSpec, rows: Sequence[dict[str, Any]]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same by a trainer of TRL, on the rows in this order."""
    from datasets import Dataset

    losses: list[float] = []

    class Told(trainer_class):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            found = super().compute_loss(*args, **options)
            losses.append(float(found))
            return found

    layers = resolve_targets(runtime.model, spec.hyper.target, {})
    paths = [layer.path for layer in layers]
    model = METHODS["lora"].attach(runtime.model, spec.hyper, paths, [], spec.seed, steps=spec.steps)
    trainer = Told(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([messages_of(row) for row in rows]),
        processing_class=runtime.tokenizer,
    )
    trainer.train()
    return losses, METHODS["lora"].state(trainer.model)


def drawn(rows: Sequence[dict[str, Any]], spec: TrialSpec) -> list[dict[str, Any]]:
    """The rows in the order in which a trial draws them."""
    steps = range(spec.steps)
    places = [batch_rows(spec.data_seed, step, spec.hyper.batch_size, len(rows)) for step in steps]
    return [rows[place] for step in places for place in step]


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    """What all trainers are told."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 5e-3,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "train_sampling_strategy": "sequential",
        "max_length": 16,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "disable_dropout": True,
        **options,
    }


def assert_alike(ours: tuple[list[float], dict[str, torch.Tensor]], theirs: Any, *, moved: float = 1e-2) -> None:
    (losses, adapter), (their_losses, their_adapter) = ours, theirs
    assert their_losses == pytest.approx(losses, abs=1e-4)
    assert max(losses) - min(losses) > moved, "the losses say something"
    assert all(float(adapter[name].abs().max()) > 1e-3 for name in adapter), "the adapter was trained"
    for name, tensor in adapter.items():
        assert torch.allclose(their_adapter[name], tensor, atol=1e-4), name


DPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
    "dpo per token": ({"beta": 2.0, "length_normalization": True}, {"loss_type": ["sigmoid_norm"], "beta": 2.0}),
    "dpo and sft": ({"sft_weight": 0.3}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3], "beta": 0.1}),
    "ipo": ({"loss": "ipo", "beta": 0.5}, {"loss_type": ["ipo"], "beta": 0.5}),
}


@pytest.mark.parametrize("case", DPO)
def test_dpo_and_ipo_follow_trl(case: str, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    own, options = DPO[case]
    rows = pairs(ROWS, prompt=3)
    settings, spec = preference_settings(tmp_path, rows), preference_spec(STEPS, **own)
    config = DPOConfig(**arguments(tmp_path, **options))
    theirs = their_steps(DPOTrainer, config, load_runtime(settings), spec, drawn(rows, spec))
    assert_alike(our_steps(settings, spec), theirs)


CPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cpo": (
        {"loss": "cpo", "beta": 0.2, "label_smoothing": 0.1, "cpo_alpha": 0.5},
        {"loss_type": "sigmoid", "beta": 0.2, "label_smoothing": 0.1, "cpo_alpha": 0.5},
    ),
    "simpo": (
        {"loss": "simpo", "simpo_beta": 2.5, "simpo_gamma": 0.7},
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.7, "cpo_alpha": 0.0},
    ),
}


@pytest.mark.parametrize("case", CPO)
def test_cpo_and_simpo_follow_trl(case: str, tmp_path: Path) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    own, options = CPO[case]
    rows = pairs(ROWS, prompt=3)
    settings, spec = preference_settings(tmp_path, rows), preference_spec(STEPS, **own)
    config = CPOConfig(**arguments(tmp_path, **options))
    theirs = their_steps(CPOTrainer, config, load_runtime(settings), spec, drawn(rows, spec))
    assert_alike(our_steps(settings, spec), theirs)


def test_orpo_follows_trl(tmp_path: Path) -> None:
    """TRL's cross-entropy covers the prompt as well; of a prompt of one token nothing is predicted."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    rows = pairs(ROWS, prompt=1)
    settings, spec = preference_settings(tmp_path, rows), preference_spec(STEPS, loss="orpo", beta=0.4)
    config = ORPOConfig(**arguments(tmp_path, beta=0.4))
    theirs = their_steps(ORPOTrainer, config, load_runtime(settings), spec, drawn(rows, spec))
    assert_alike(our_steps(settings, spec), theirs)


def test_kto_follows_trl(tmp_path: Path) -> None:
    """All rows are one batch in the order of the file, so that both take the same answers after other prompts."""
    from trl import KTOConfig, KTOTrainer

    rows = singles(6)
    settings = preference_settings(tmp_path, rows)
    own = {"loss": "kto", "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}
    spec = preference_spec(STEPS, batch_size=6, **own)
    options = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8, "per_device_train_batch_size": 6}
    config = KTOConfig(**arguments(tmp_path, **options))
    theirs = their_steps(KTOTrainer, config, load_runtime(settings), spec, rows * STEPS)
    assert_alike(our_steps(settings, spec), theirs)
