"""What a trial is between two steps: enough to continue it elsewhere, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from automl.space.spec import Quantization
from automl.trial import Measurement, TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """A trial after `step` optimizer steps. All tensors are copies on the CPU.

    params: adapter and head, as `Method.state` names them.
    moments: AdamW's, as `optim.moments` names them.
    dropout: state of its generator, (bytes,) uint8; None without dropout.
    micro_batch, evaluation_tokens: rows at once in training, tokens at once in an evaluation; both are lowered when
        memory is short.
    seconds, tokens: spent on training since step 0, over all attempts.
    importance, method: running means (`Sensitivity.state`), what the method remembers (`Method.memory`); empty where
        there is nothing.
    """

    step: int
    params: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    dropout: Tensor | None
    micro_batch: int
    evaluation_tokens: int
    seconds: float
    tokens: int
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    method: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """What a slot file holds: the trial's state and every measurement it has made.

    Importances are kept with the last measurement only.
    """

    state: TrainState
    measurements: tuple[Measurement, ...]


def identity(
    spec: TrialSpec,
    *,
    backbone: str,
    data: str,
    precision: str,
    targets: Mapping[str, tuple[str, ...]],
    shards: int = 1,
    quantization: Quantization | None = None,
) -> dict[str, Any]:
    """Everything a trial's curve depends on, as JSON: two attempts with the same identity are the same computation.

    backbone, data: fingerprints. shards: processes that share a trial, each with dropout masks of its own. The attempt,
    and whatever else may differ between attempts, is left out.
    """
    hyper = dict(sorted(spec.hyper.as_dict().items()))
    return {
        "trial": spec.number,
        "hyper": hyper,
        "seed": spec.seed,
        "data_seed": spec.data_seed,
        "steps": spec.steps,
        "evaluate_every": spec.evaluate_every,
        "backbone": backbone,
        "data": data,
        "precision": precision,
        "targets": {name: list(patterns) for name, patterns in sorted(targets.items())},
        **({"shards": shards} if shards > 1 else {}),
        **({"quantization": asdict(quantization)} if quantization else {}),
        **({"stop_after": spec.stop_after} if spec.stop_after else {}),
        **({"evaluations": [list(pair) for pair in spec.evaluations]} if spec.evaluations else {}),
    }
