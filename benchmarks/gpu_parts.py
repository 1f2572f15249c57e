"""The parts of `benchmarks.gpu_check`: each a question about this device, answered in a process of its own.

A part returns JSON with `holds`, whether what it was asked is so; None if it only measures. What it raises ends it
alone: memory that is too short and packages that are missing are named as such by who runs it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from automl.models.calling import quiet
from automl.models.memory import estimate_bytes
from automl.packed import PackedTrainer, Workload
from automl.packed.bank import BankSize
from automl.packed.memory import pack_bytes
from automl.packed.proof import disproof
from automl.training.memory import TOKEN_BUDGET
from automl.training.runtime import Runtime
from automl.trial import TrialSpec
from benchmarks.gpu_packed import (
    PRECISIONS,
    Cell,
    arms_of,
    device_description,
    exact_products,
)
from benchmarks.measure import interleaved
from benchmarks.plain_peft import REDUCED_TOLERANCE, PlainPeft, exactness, run_rounds
from benchmarks.plan_memory import _Living as Living
from benchmarks.shapes import build, frozen_flops, held_in_4_bits, mixed_trials, trial, workload

Answer = dict[str, Any]

HYPER: Mapping[str, Any] = {"target": "all-linear", "rank": 16, "dropout": 0.0}

TINY_BATCH, SATURATING = 128, 2048
"""Tokens of a trial's step: of the first the device does in the time in which a host launches its kernels, of the
second a single trial keeps it busy."""

EXACT = {"fp32": 1e-5, "bf16": REDUCED_TOLERANCE}
"""Largest relative difference of a packed loss to that of PEFT in float32, on any device."""

A_TENTH = 0.1
"""How far a plan of memory may be from what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where a part runs. quick: tiny models on the CPU, whose figures mean nothing. folder: its own, for files."""

    quick: bool
    folder: Path

    @property
    def device(self) -> str:
        """Where models are: a device of torch."""
        return "cpu" if self.quick else "cuda"

    def keep(self, found: Answer) -> None:
        """Leave what has been found so far to who waits for the part, should it not come to its end."""
        (self.folder / "so-far.json").write_text(json.dumps(found), encoding="utf-8")


Part = Callable[[World], Answer]


def device(world: World) -> Answer:
    """The card, its memory, and the rate of its products."""
    return {"holds": None, **device_description(world.device)}


# Exactness


def exact(world: World, *, precision: str, in_4_bits: bool = False) -> Answer:
    """Packed losses and gradients against PEFT's, on decoders of two kinds and an encoder.

    objection: why a search would not pack trials on this model here, by its own proof. In bfloat16 that is an answer
    and no fault: random weights enlarge its rounding.
    """
    shapes = ("tiny-llama", "tiny-qwen", "tiny-bert") if world.quick else ("0.1b", "0.5b", "bert-base")
    found = {shape: _exact(world, shape, precision, in_4_bits) for shape in shapes}
    return {"holds": all(each["holds"] for each in found.values()), "models": found}


def _exact(world: World, shape: str, precision: str, in_4_bits: bool) -> Answer:
    load = workload(shape, tokens=16 if world.quick else 64, rows=64, evaluation_rows=1)
    trials = [replace(each, hyper=replace(each.hyper, dropout=0.0)) for each in mixed_trials(2)]
    model = _network(world, shape, "fp32", in_4_bits)
    bank = BankSize(len(trials), max(each.hyper.rank for each in trials), ("qv", "attention", "all-linear"))
    packed = model if precision == "fp32" else _network(world, shape, precision, in_4_bits)
    with exact_products():
        proof = exactness(model, load, trials, precision=precision, steps=8, packed=packed, bank=bank)
        objection = disproof(_runtime(world, packed, load, precision), ("all-linear",), bank=True, recompute=False)
    is_exact = proof.difference <= EXACT[precision] and not (objection and precision == "fp32")
    return {**proof.as_json(), "tolerance": EXACT[precision], "holds": is_exact, "objection": objection}


def _network(world: World, shape: str, precision: str, in_4_bits: bool = False) -> nn.Module:
    stored = PRECISIONS[precision] or torch.float32
    model = build(shape, device=world.device, dtype=stored, is_telling=True)
    return held_in_4_bits(model, stored) if in_4_bits else model


def _runtime(world: World, model: nn.Module, load: Workload, precision: str) -> Runtime:
    return Runtime(
        model=model,
        tokenizer=load.tokenizer,
        task=load.task,
        train_rows=load.train_rows,
        evaluation_rows=load.evaluation_rows,
        device=torch.device(world.device),
        precision=precision,
    )


# Memory


def memory(world: World) -> Answer:
    """Bytes at the peak of a step over those that were planned: a trial alone, and packs."""
    shapes = ("tiny-llama",) if world.quick else ("0.1b", "0.5b", "1b")
    cases = [case for shape in shapes for case in _memory(world, shape)]
    is_near = all(abs(case["planned"] / case["there"] - 1) <= A_TENTH for case in cases)
    return {"holds": None if world.quick else is_near, "cases": cases}


def _memory(world: World, shape: str) -> Iterator[Answer]:
    precision = "fp32" if world.quick else "bf16"
    rows, length = (2, 16) if world.quick else (4, 256)
    model, load = _network(world, shape, precision), workload(shape, tokens=length, rows=64, evaluation_rows=1)
    hyper = {**HYPER, "batch_size": rows, "warmup": 0.0}
    first = trial(0, **hyper)
    frozen = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    planned = estimate_bytes(
        model, first.hyper, tokens=rows * length, rows=rows, dtype=precision, length=length, device=world.device
    )
    alone = PlainPeft(model, load, first, autocast=PRECISIONS[precision])
    there = _peak(world, model, lambda: [alone.take_step() for _ in range(3)])
    alone.close()
    yield {"model": shape, "what": "one trial", "planned": planned.adapter + planned.step, "there": there - frozen}
    for slots in (2,) if world.quick else (1, 8):
        specs = [trial(number, **hyper) for number in range(slots)]
        there = _peak(world, model, partial(_pack_steps, world, model, load, precision, specs))
        wanted = pack_bytes(
            model,
            first.hyper,
            slots=slots,
            tokens=rows * length,
            token_budget=TOKEN_BUDGET[world.device],
            dtype=precision,
            device="cuda",
        )
        yield {"model": shape, "what": f"{slots} packed", "planned": wanted, "there": there - frozen}


def _pack_steps(world: World, model: nn.Module, load: Workload, precision: str, specs: Sequence[TrialSpec]) -> None:
    """Three steps of a pack, none of them recorded: graphs keep memory of their own."""
    bank = BankSize(len(specs), int(HYPER["rank"]), (str(HYPER["target"]),))
    trainer = PackedTrainer(model, load, precision=precision, bank=bank, graphs=False)
    try:
        for spec in specs:
            trainer.admit(spec)
        run_rounds(trainer, 3)
    finally:
        trainer.close()


def _peak(world: World, model: nn.Module, run: Callable[[], object]) -> int:
    """Most bytes of tensors at once while it runs, the model included."""
    if world.quick:
        with Living([*model.parameters(), *model.buffers()]) as living:
            run()
        return living.peak
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


# What packing is worth


def factor(
    world: World, *, shape: str, tiny: Sequence[int], saturating: Sequence[int], in_4_bits: bool = False
) -> Answer:
    """How many times as fast a step of a trial is packed as alone with PEFT, by trials in the pack.

    Two numbers, which say different things and are never multiplied: for a batch that leaves the device waiting, and
    for one that keeps it busy.
    """
    shape = "tiny-llama" if world.quick else shape
    model = _network(world, shape, "bf16", in_4_bits)
    if world.quick:
        tiny, saturating = (1, 4), (1, 2)
    few, many = (8, 16) if world.quick else (TINY_BATCH, SATURATING)
    answers = {}
    for name, tokens, slots in (("tiny_batch", few, tiny), ("saturating_batch", many, saturating)):
        answers[name] = _factor(world, shape, tokens, slots, model)
        world.keep(answers)
    return {"holds": all(each["holds"] for each in answers.values()), "model": shape, "in_4_bits": in_4_bits, **answers}


def _factor(
    world: World, shape: str, tokens: int, slots: Sequence[int], model: nn.Module, ranks: Sequence[int] = ()
) -> Answer:
    cell = Cell(
        shape,
        tokens,
        slots,
        device=world.device,
        precision="bf16",
        seconds=0.0 if world.quick else 0.3,
        hyper=HYPER,
        ranks=ranks,
        model=model,
    )
    difference = cell.difference()
    if difference > REDUCED_TOLERANCE:
        return {"holds": False, "tokens": tokens, "difference": difference, "arms": {}}
    arms = arms_of(cell, interleaved(cell.runs, 1 if world.quick else 2), frozen_flops(model, tokens))
    return {"holds": True, "tokens": tokens, "difference": difference, "idle_bytes": cell.idle_bytes, "arms": arms}


def ranks(world: World) -> Answer:
    """What it costs that trials of several ranks are padded to the largest: all of 16, mixed, all of 64."""
    shape, slots = ("tiny-llama", 2) if world.quick else ("0.5b", 16)
    low, high = (2, 8) if world.quick else (16, 64)
    model = _network(world, shape, "bf16")
    tokens = 8 if world.quick else TINY_BATCH
    sets = {"low": [low], "mixed": [high // 16 or 1, low, high // 2, high], "high": [high]}
    found = {name: _factor(world, shape, tokens, (slots,), model, each) for name, each in sets.items()}
    steps = {name: each["arms"].get(f"packed K={slots}", {}).get("median_wall_seconds") for name, each in found.items()}
    return {"holds": all(each["holds"] for each in found.values()), "ranks": sets, "seconds_per_step": steps}


# Whole searches


def search(world: World) -> Answer:
    """A search from its YAML to its report, without Ray, on a model that is built of its configuration."""
    space = _write_world(world, "whole", pruner="halving", precision="auto")
    code, said = _automl(world, "search", str(space), "--no-verify", "--json")
    if code:
        return {"holds": False, "exit": code, "said": said}
    found = json.loads(said)
    folder = Path(found["folder"])
    spent, full = found["spent_steps"], found["full_steps"]
    return {
        "holds": (folder / "report.html").stat().st_size > 0 and sum(found["counts"].values()) == _trials(world),
        "counts": found["counts"],
        "packing": _ground(world.folder / "whole.db"),
        "training_seconds": found["training_seconds"],
        "best": found["best"]["value"] if found["best"] else None,
        "baseline": found["baseline"],
        "steps": {"spent": spent, "without_pruning": full},
        "pruning": full / spent if spent else None,
    }


def resumed(world: World) -> Answer:
    """A search that is killed after its first measurements and continued by the same command."""
    space = _write_world(world, "killed", pruner="none", precision="fp32")
    database = world.folder / "killed.db"
    process = multiprocessing.get_context("fork").Process(target=_search_alone, args=(world, space))
    process.start()
    while process.is_alive() and len(_rows(database, "SELECT 1 FROM automl_measurements")) < 2:
        time.sleep(0.02)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the search ended before it was killed: {_said_in(world).read_text(encoding='utf-8')}")
    before = len(_rows(database, "SELECT 1 FROM automl_measurements"))
    code, said = _automl(world, "search", str(space), "--no-verify", "--json")
    after = _rows(database, "SELECT trial, step FROM automl_measurements")
    steps = max((step for _, step in after), default=0)
    ended = sum(step == steps for _, step in after)
    return {
        "holds": not code
        and process.exitcode == -signal.SIGKILL
        and ended == _trials(world) == len({t for t, _ in after}),
        "measurements": {"when_killed": before, "at_the_end": len(after)},
        "exit": code,
        "said": said if code else "",
    }


def _trials(world: World) -> int:
    return 4 if world.quick else 8


def _write_world(world: World, name: str, *, pruner: str, precision: str) -> Path:
    """A folder with model, tokenizer, data and the space file, which is returned."""
    shape = "tiny-qwen" if world.quick else "0.5b"
    folder = world.folder / "model"
    if not folder.exists():
        _write_model(folder, shape)
    data = world.folder / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in _texts(240)), encoding="utf-8")
    steps = 8 if world.quick else 40
    document = {
        "version": 1,
        "study": name,
        "model": {"folder": str(folder)},
        "task": {"type": "completion", "data": str(data), "metric": "loss", "seed": 3, "evaluate_rows": 16},
        "space": {
            "rank": {"type": "int", "low": 2, "high": 16, "log": True},
            "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
        },
        "fixed": {"batch_size": 4, "max_length": 64, "target": "all-linear"},
        "search": {
            "sampler": "random",
            "pruner": pruner,
            "trials": _trials(world),
            "steps": steps,
            "evaluate_every": steps // 4,
            "seed": 3,
            "keep": 1,
            "squeeze": False,
        },
        "storage": {"url": f"sqlite:///{world.folder / name}.db"},
        "run": {
            "executor": "inline",
            "device": world.device,
            "precision": precision,
            "output": str(world.folder / "output"),
        },
    }
    space = world.folder / f"{name}.yaml"
    space.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return space


_TOKENS, _END = 300, "<|endoftext|>"


def _write_model(folder: Path, shape: str) -> None:
    """Random weights, in bfloat16 as models are distributed, and a tokenizer of bytes and pairs of them."""
    # On the CPU: a process that has used CUDA cannot be forked for a search that does.
    model: Any = build(shape, dtype=torch.bfloat16, is_telling=True)
    with quiet():
        model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_TOKENS, initial_alphabet=alphabet, special_tokens=[_END], show_progress=False
    )
    tokenizer.train_from_iterator(_texts(40), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_END, eos_token=_END)
    fast.save_pretrained(folder)


def _texts(number: int) -> Iterator[str]:
    """Texts in which every word but the first follows from the one before it."""
    draw = random.Random(5)
    for _ in range(number):
        first, step = draw.randrange(61), draw.choice((1, 2))
        yield " ".join(f"w{3 + (first + step * place) % 61}" for place in range(draw.randrange(12, 28)))


def _automl(world: World, *arguments: str) -> tuple[int, str]:
    """Exit code of the command, run in this process, which cannot import Ray then; and its answer or its error."""
    from automl.cli.main import main

    sys.modules["ray"] = None  # type: ignore[assignment]  # so that importing it is an error
    os.environ |= {"AUTOML_CACHE": str(world.folder / "cache"), "HF_HUB_OFFLINE": "1"}
    answer, error = StringIO(), StringIO()
    try:
        with redirect_stdout(answer), redirect_stderr(error):
            main(list(arguments))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    return code, error.getvalue()[-2000:] if code else answer.getvalue()


def _search_alone(world: World, space: Path) -> None:
    code, said = _automl(world, "search", str(space), "--no-verify")
    _said_in(world).write_text(f"code {code}: {said}", encoding="utf-8")


def _said_in(world: World) -> Path:
    return world.folder / "said.txt"


def _rows(database: Path, sql: str) -> list[Any]:
    if not database.exists():
        return []
    try:
        with closing(sqlite3.connect(database, timeout=10)) as connection:
            return connection.execute(sql).fetchall()
    except sqlite3.OperationalError:  # its tables are being made
        return []


def _ground(database: Path) -> Any:
    """What the search says of how it trained."""
    found = _rows(database, "SELECT detail FROM automl_events WHERE kind = 'ground' ORDER BY id DESC LIMIT 1")
    return json.loads(found[0][0])["packing"] if found else None
