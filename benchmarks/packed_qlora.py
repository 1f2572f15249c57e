"""Packed QLoRA against PEFT on bitsandbytes layers, per optimizer step of one trial, on the same model in 4 or 8 bits.

Training steps only, in one process, all arms interleaved after a warm-up. PEFT trains one trial after the other; it
also runs with products in bfloat16, since a pack in bf16h computes in it. Packed losses are held against PEFT's first,
and the resident bytes of the quantised weights are counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from automl.models.calling import quiet
from automl.models.quantised import compute_as_in_training, is_quantised, loading_options
from automl.packed import PackedTrainer
from automl.space.spec import Quantization
from benchmarks.measure import Timing, interleaved, repetitions, spread, timed
from benchmarks.packed_step import Setting
from benchmarks.plain_peft import PlainPeft, exactness, run_rounds
from benchmarks.report import Report, names, numbers, parser, table
from benchmarks.shapes import build, mixed_trials, trial, workload

SETTINGS = (Setting("smollm2-135m", 2, 64), Setting("smollm2-135m", 4, 128))
QUICK = (Setting("tiny-llama", 2, 8),)
PEFT, PEFT_HALF = "PEFT + bitsandbytes", "PEFT + bitsandbytes, bf16 products"


def held(shape: str, quantization: Quantization, *, compute: torch.dtype = torch.float32) -> nn.Module:
    """A model of this shape with random weights, held in few bits. compute: type of the products of PEFT's layers."""
    model: Any = build(shape)
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.save_pretrained(folder)
        options = loading_options(quantization, model, compute)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    compute_as_in_training(model, compute)
    found: nn.Module = model.requires_grad_(False).eval()
    return found


def bytes_per_weight(model: nn.Module) -> float:
    """Resident bytes of the quantised layers, scales included, per weight."""
    layers: list[Any] = [module for module in model.modules() if is_quantised(module)]
    tensors: list[torch.Tensor] = []
    for layer in layers:
        state = getattr(layer.weight, "quant_state", None)
        tensors += [layer.weight.data, *([] if state is None else [state.absmax])]
        tensors += [state.state2.absmax] if state is not None and state.nested else []
    return sum(each.nbytes for each in tensors) / sum(layer.in_features * layer.out_features for layer in layers)


class Arms:
    """PEFT and packs on the same weights, ready to take steps. seconds: least length of one measurement."""

    def __init__(self, setting: Setting, quantization: Quantization, slots: Sequence[int], seconds: float) -> None:
        load = workload(setting.shape, tokens=setting.length)
        self._hyper = {"batch_size": setting.batch, "schedule": "constant", "warmup": 0.0, "target": "all-linear"}
        self._seconds = seconds
        self._repetitions: dict[str, int] = {}
        self.runs: dict[str, Callable[[], Timing]] = {}
        for name, compute in ((PEFT, torch.float32), (PEFT_HALF, torch.bfloat16)):
            alone = PlainPeft(held(setting.shape, quantization, compute=compute), load, trial(0, **self._hyper))
            self.runs[name] = partial(self._per_step, name, 1, partial(_steps, alone))
        for precision in ("fp32", "bf16h"):
            trainer = PackedTrainer(held(setting.shape, quantization), load, precision=precision)
            for count in slots:
                name = f"packed {precision} K={count}"
                self.runs[name] = partial(self._packed, name, trainer, count)

    def _packed(self, name: str, trainer: PackedTrainer, count: int) -> Timing:
        for number in range(count):
            trainer.admit(trial(number, **self._hyper))
        try:
            return self._per_step(name, count, partial(run_rounds, trainer))
        finally:
            for number in range(count):
                trainer.evict(number)

    def _per_step(self, name: str, trials: int, take: Callable[[int], object]) -> Timing:
        """Time of one step of one trial. The first time, a first step warms up and a second says how many to time."""
        if name not in self._repetitions:
            take(1)
            self._repetitions[name] = repetitions(timed(lambda: take(1)).wall, self._seconds)
        steps = self._repetitions[name]
        return timed(lambda: take(steps)).per(steps * trials)


def _steps(alone: PlainPeft, steps: int) -> None:
    for _ in range(steps):
        alone.take_step()


def measure(setting: Setting, quantization: Quantization, args: argparse.Namespace) -> dict[str, Any]:
    """Times of one setting, if packed losses are PEFT's."""
    model, load = held(setting.shape, quantization), workload(setting.shape, tokens=setting.length)
    proof = exactness(model, load, mixed_trials(setting.batch), steps=args.steps)
    print(f"{setting.name}, {quantization}: {proof.text()}; {bytes_per_weight(model):.3f} bytes per quantised weight")
    result = {"setting": setting.name, "exactness": proof.as_json(), "bytes_per_weight": bytes_per_weight(model)}
    if not proof.holds:
        return result | {"arms": {}}
    del model
    arms = Arms(setting, quantization, args.slots, 0.02 if args.quick else args.seconds)
    found = interleaved(arms.runs, 2 if args.quick else args.rounds)
    return result | {
        "arms": {
            name: {"cpu_seconds": [each.cpu for each in times], "wall_seconds": [each.wall for each in times]}
            for name, times in found.items()
        }
    }


def rows_of(result: dict[str, Any]) -> list[dict[str, object]]:
    """Table rows of one setting."""
    cpu = {name: spread(arm["cpu_seconds"]) for name, arm in result["arms"].items()}
    return [
        {
            "setting": result["setting"],
            "arm": name,
            "CPU ms per step of a trial": spread([1e3 * value for value in result["arms"][name]["cpu_seconds"]]).text(),
            "x PEFT": f"{cpu[PEFT].median / each.median:.2f}",
            "x PEFT bf16": f"{cpu[PEFT_HALF].median / each.median:.2f}",
        }
        for name, each in cpu.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if packed losses are not PEFT's."""
    options = parser("packed_qlora", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--slots", type=numbers, default=(1, 8), metavar="K,K,…", help="resident trials")
    options.add_argument("--quantization", choices=("int8", "nf4", "fp4"), default="nf4")
    options.add_argument("--no-double-quant", action="store_true", help="scales in float32")
    options.add_argument(
        "--settings", type=names, default=(), metavar="TEXT,…", help="only those whose name has a TEXT"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=4, help="of which every loss is compared")
    options.add_argument("--seconds", type=float, default=2.0, help="least duration of one measurement")
    options.add_argument("--threads", type=int, default=1, help="of torch")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    report = Report("packed_qlora", args)
    report.print_machine()
    double = args.quantization != "int8" and not args.no_double_quant
    quantization = Quantization(kind=args.quantization, double=double)
    settings = [
        setting
        for setting in (QUICK if args.quick else SETTINGS)
        if not args.settings or any(part in setting.name for part in args.settings)
    ]
    results = [measure(setting, quantization, args) for setting in settings]
    report.add("results", results)
    print(table([row for result in results for row in rows_of(result)]))
    return 0 if all(result["arms"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
