"""Memory of a training step against what is planned for it: architectures x methods, on a CPU.

Each case is a network of random numbers that is trained for two steps of two micro-batches, as a trial is whose batch
does not fit at once. Measured are the bytes of all living tensors at the peak (a dispatch mode of torch sees every new
one).

    python -m benchmarks.plan_memory [--json FILE] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import random
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.settings import chosen
from automl.models.backbone import without_dropout
from automl.models.inventory import head_modules, resolve_targets
from automl.models.memory import backbone_bytes, estimate_bytes
from automl.packed import PackedTrainer, Workload
from automl.packed.memory import pack_bytes
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.joining import POSITIONS, attention_of
from automl.training import optim
from benchmarks.plain_peft import run_rounds
from benchmarks.shapes import PadOnly, trial

LLAMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "pad_token_id": 0}
_STACK = {"layers": 4, "attention_heads": 8, "ffn_dim": 1024}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "intermediate_size": 688},
    "qwen3": {**LLAMA, "intermediate_size": 688},
    "mistral": {**LLAMA, "intermediate_size": 896},
    "gemma3_text": {**LLAMA, "intermediate_size": 1024},
    "phi3": {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 688, "pad_token_id": 0},
    "gpt2": {"num_attention_heads": 8},
    "gpt_neox": {"num_attention_heads": 8, "intermediate_size": 1024},
    "bert": {"num_attention_heads": 8, "intermediate_size": 1024},
    "roberta": {"num_attention_heads": 8, "intermediate_size": 1024, "max_position_embeddings": 514},
    "modernbert": {"num_attention_heads": 8, "intermediate_size": 512, "pad_token_id": 0},
    "t5": {"num_attention_heads": 8, "d_kv": 32, "d_ff": 1024, "decoder_start_token_id": 0},
    "bart": {
        **{f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in _STACK.items()},
        "pad_token_id": 0,
    },
}
"""By model_type: what differs; all are 256 wide and 4 blocks deep."""

_CLASSIFIERS = {"bert", "roberta", "modernbert", "t5", "bart"}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


class Case(NamedTuple):
    """model: a name of MODELS. own: settings of the method. joined: rows are blocks of four.

    slots: trials of a pack, which learn all tokens of a row; 0: one trial alone.
    """

    model: str
    method: str
    precision: str = "fp32"
    dropout: float = 0.0
    own: tuple[tuple[str, Any], ...] = ()
    rows: int = 4
    length: int = 128
    joined: bool = False
    slots: int = 0

    def __str__(self) -> str:
        marks = " dropout" * (self.dropout > 0) + " joined" * self.joined + " packed" * (self.slots > 0)
        return f"{self.model} {self.method} {self.precision}{marks}" + "".join(f" {value}" for _, value in self.own)


CASES: tuple[Case, ...] = (
    *(Case(model, "lora") for model in MODELS),
    *(Case(model, "full") for model in ("llama", "gpt2", "bert", "qwen3")),
    *(Case(model, "lora", "bf16") for model in ("llama", "qwen3", "gemma3_text", "gpt2")),
    *(Case(model, "lora", dropout=0.1) for model in ("llama", "bert")),
    *(Case(model, "lora", length=512, joined=True) for model in ("llama", "qwen3")),
    *(Case("llama", method) for method in ("adalora", "ia3", "prompt", "prefix", "adapter")),
    *(Case("bert", method) for method in ("ia3", "bitfit", "adapter")),
    Case("llama", "adapter", own=(("adapter_place", "parallel"),)),
    *(Case(model, "lora", slots=2) for model in ("llama", "gpt2", "gemma3_text", "qwen3")),
)
QUICK: tuple[Case, ...] = (
    Case("qwen3", "lora", length=64),
    Case("bert", "full", length=64),
    Case("llama", "adapter", length=64),
    Case("t5", "lora", length=64),
    Case("llama", "lora", length=128, joined=True),
    Case("llama", "lora", slots=2),
)


class Measured(NamedTuple):
    """Bytes. tensors: living ones at the peak."""

    case: str
    planned: int
    tensors: int

    @property
    def ratio(self) -> float:
        """What is planned over what is there."""
        return self.planned / self.tensors


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors that are alive."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        for tensor in tensors:
            self._hold(tensor)

    def _hold(self, tensor: Tensor) -> None:
        storage: Any = tensor.untyped_storage()
        if not getattr(storage, "_is_counted", False):
            storage._is_counted = True
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return found


class Training:
    """A case that is ready to be trained. planned: bytes at the peak of its steps."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.hyper = Hyperparameters(
            method=case.method, rank=8, dropout=case.dropout, own=chosen(METHODS[case.method].settings, dict(case.own))
        )
        model = network(case)
        self.planned = planned(model, self.hyper, case)
        layers = [layer.path for layer in resolve_targets(model, self.hyper.target)]
        self.model: Any = METHODS[case.method].attach(model, self.hyper, layers, head_modules(model), 1, steps=10)
        self.model.train()
        self._backbone = model
        self._parameters = optim.trainable(self.model)
        self._optimizer = optim.adamw(self._parameters, self.hyper)

    def tensors(self) -> Iterator[Tensor]:
        """All that is there between steps."""
        yield from (*self.model.parameters(), *self.model.buffers())
        states = [each for state in self._optimizer.state.values() for each in state.values()]
        yield from (each for each in states if isinstance(each, Tensor))

    def run(self) -> None:
        """Two steps of two micro-batches."""
        generator = torch.Generator().manual_seed(1)
        for step in range(2):
            self._optimizer.zero_grad(set_to_none=True)
            for _ in range(2):
                ids = torch.randint(3, 1900, (self.case.rows, self.case.length), generator=generator)
                ids[:, -1] = _SPECIAL["eos_token_id"]  # where T5's and BART's classifiers read
                torch.autograd.backward(self._loss(ids))
            optim.take_step(self._optimizer, self._parameters, self.hyper, step=step, steps=10)

    def _loss(self, ids: Tensor) -> Tensor:
        half = self.case.precision == "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = self.model(input_ids=ids, **self._apart(ids)).logits
        found = logits.float().flatten(0, -2)
        return functional.cross_entropy(found, torch.ones(found.shape[0], dtype=torch.long), reduction="none").sum()

    def _apart(self, ids: Tensor) -> dict[str, Tensor]:
        """What keeps the rows of a block apart."""
        if not self.case.joined:
            return {}
        positions = torch.arange(self.case.length) % (self.case.length // 4)
        return attention_of(self._backbone, {"input_ids": ids, POSITIONS: positions.expand_as(ids)})


class Pack:
    """Trials of a case that are ready to be trained together. planned: as of `Training`."""

    def __init__(self, case: Case) -> None:
        model = network(case)
        hyper = Hyperparameters(method=case.method, rank=8, dropout=case.dropout, batch_size=case.rows)
        tokens, every = case.rows * case.length, case.slots * case.rows * case.length
        self.planned = backbone_bytes(model, 4, None)
        self.planned += pack_bytes(model, hyper, slots=case.slots, tokens=tokens, token_budget=every)
        settings = TaskSettings(
            type="completion", data=DataSettings(kind="files"), metric="loss", max_length=case.length
        )
        draw = random.Random(1)
        drawn = [[draw.randrange(3, 1900) for _ in range(case.length)] for _ in range(16)]
        rows = [{"input_ids": ids, "labels": ids} for ids in drawn]
        load = Workload(task=make_task(settings), train_rows=rows, evaluation_rows=rows, tokenizer=PadOnly())
        # torch's own products: the plan leaves to the caller what kernels keep of frozen weights
        self._trainer = PackedTrainer(model, load, kernel="torch-fp32", token_budget=every)
        self._hyper, self._slots = hyper, case.slots

    def tensors(self) -> Iterator[Tensor]:
        """The backbone's; what trials have comes with them."""
        yield from (*self._trainer.model.parameters(), *self._trainer.model.buffers())

    def run(self) -> None:
        """Two steps of every trial."""
        for number in range(self._slots):
            self._trainer.admit(
                trial(number, batch_size=self._hyper.batch_size, target=self._hyper.target, rank=self._hyper.rank)
            )
        run_rounds(self._trainer, 2)


def network(case: Case) -> nn.Module:
    """The case's network, frozen, of random numbers."""
    general = {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 2000, "max_position_embeddings": 512}
    config = AutoConfig.for_model(case.model, **{**general, **_SPECIAL, **MODELS[case.model]})
    without_dropout(config)
    auto: Any = AutoModelForSequenceClassification if case.model in _CLASSIFIERS else AutoModelForCausalLM
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    model: nn.Module = auto.from_config(config, dtype=dtype).requires_grad_(False).eval()
    return model


def planned(model: nn.Module, hyper: Hyperparameters, case: Case) -> int:
    """What the product plans for the case. Weights that are trained in place are there once here."""
    tokens = case.rows * case.length
    found = estimate_bytes(
        model,
        hyper,
        tokens=tokens,
        rows=case.rows,
        dtype=case.precision,
        length=case.length,
        is_joined=case.joined,
    )
    if case.method in ("full", "bitfit"):
        return found.total - 4 * METHODS[case.method].trainable(model, [], hyper)
    return found.total


def measure(case: Case) -> Measured:
    """Living tensors at the peak of the case's steps."""
    training: Pack | Training = Pack(case) if case.slots else Training(case)
    with _Living(training.tensors()) as living:
        training.run()
    return Measured(str(case), training.planned, living.peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for case in (case for case in CASES if options.only in str(case)):
        one = measure(case)
        found.append(one)
        line = f"{one.case:28} planned {one.planned / 2**20:8.1f} MiB, there {one.tensors / 2**20:8.1f}"
        print(f"{line}: {one.ratio:.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
