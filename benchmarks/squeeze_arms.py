"""The arms of `squeeze_table`, each stored as soon as it is scored, so that a killed run goes on where it stopped.

Four parts, in the order of their use. `cuts`: full adapters and their cuts. `small`: recovery of cuts, and training at
the small rank with as many steps in all. `gate`: other ranks at their own rates. `ranks`: training with squeezed and
with random ranks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from automl.importance.cuts import even_ranks, global_ranks, parameters
from automl.metric import practical_margin
from automl.verify.ranks import random_ranks
from benchmarks.measure import machine
from benchmarks.squeeze_world import Lab, Params, TextSet, Trained, Training, Turned, cut

PILOT_SEED = 1000
"""Seed of the trainings that learning rates are chosen by; no other arm has it."""

RATES_AROUND = (0.5, 1.0, 2.0)
"""A grid of learning rates, as factors of its centre; extended while the best one lies at an edge."""

MOST_RATES = 6
FAILED = 1.25
"""A training has failed if its validation loss is so many times the best of its pilots, which trained half as long."""

MOST_HALVINGS = 3
RECOVERY_SHARE = 0.15
"""Steps of a recovery, of those of a training."""

LONGER = 1.5
LONGER_SEEDS = 2
ORDER_OF_OTHERS = 5000
"""Added to the seed for batches that the full training has not seen in this order."""


class Record:
    """What has been measured of one set: a JSON document, rewritten after every arm.

    Further seeds may be asked for later, all else of the plan has to be as it was; raises ValueError if it is not.
    """

    def __init__(self, path: Path, text_set: TextSet, settings: Mapping[str, Any]) -> None:
        self._path = path
        plan = asdict(text_set) | dict(settings)
        fresh = {"plan": plan, "runs": [], "results": {}, "halvings": {}, "dropped": {}}
        self.document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else fresh
        measured: dict[str, Any] = self.document["plan"]
        if measured | {"seeds": plan["seeds"]} != plan:
            raise ValueError(f"{path}: was measured with another plan; name another folder with --record")
        measured["seeds"] = sorted({*measured["seeds"], *plan["seeds"]})

    @property
    def results(self) -> dict[str, Any]:
        """What was measured, by key."""
        found: dict[str, Any] = self.document["results"]
        return found

    def begin(self) -> None:
        """Note where and with what this run measures."""
        self.document["runs"].append(machine())

    def halvings(self, name: str) -> int:
        """How often the chosen rate of these arms was halved."""
        return int(self.document.get("halvings", {}).get(name, 0))

    def halve(self, name: str, keys: Iterable[str]) -> None:
        """Put these results aside and have the arms trained again at half their rate."""
        for key in keys:
            result = self.results.pop(key)
            self.document.setdefault("dropped", {})[f"{key} at {result['rate']:.4g}"] = result
        self.document.setdefault("halvings", {})[name] = self.halvings(name) + 1
        self._write()
        print(f"{self._path.stem}: {name} at half the rate", flush=True)

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Store a result."""
        self.results[key] = dict(value)
        self._write()
        print(f"{self._path.stem}: {key}", flush=True)

    def _write(self) -> None:
        """Write durably enough: another file takes the place of the old one."""
        draft = self._path.with_suffix(".draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(
            json.dumps(self.document, indent=None, sort_keys=True).replace("},", "},\n") + "\n", encoding="utf-8"
        )
        os.replace(draft, self._path)


@dataclass(slots=True)
class Arms:
    """The arms of one set. seeds: of every arm. turned: full adapters taken apart so far."""

    text_set: TextSet
    record: Record
    lab: Lab
    seeds: Sequence[int]
    turned: dict[int, Turned] = field(default_factory=dict)

    # Parts

    def cuts(self) -> None:
        """Full adapters and what is left of them at smaller sizes."""
        name = f"rank{self.text_set.rank}"
        wanting = [seed for seed in self.seeds if not self._is_cut(seed)]
        self._settle(name, [f"{name}/{seed}" for seed in wanting], lambda: self._full(wanting))
        for seed in wanting:
            self._cuts(seed)

    def small(self) -> None:
        """Training at an eighth of the rank with as many steps in all, recovery of cuts to it, and longer training."""
        rank, steps, longer = self.eighth, self.text_set.steps, round(LONGER * self.text_set.steps)
        self._trained(f"rank{rank}+", rank, self.seeds, steps + self.recovery)
        for kind in ("global", "even"):
            self._recovered(kind)
        self._trained(f"long/{longer}", self.text_set.rank, self.seeds[:LONGER_SEEDS], longer, is_settled=True)

    def gate(self) -> None:
        """Other even ranks, each at its own rate, with the steps of the full one."""
        for rank in self.ranks:
            if rank != self.text_set.rank:
                self._trained(f"rank{rank}", rank, self.seeds, self.text_set.steps)

    def ranks_to_train(self) -> None:
        """An eighth of the rank on average: by the squeeze of another seed, and at random."""
        for kind, make in (("squeezed", self._squeezed_ranks), ("random", self._random_ranks)):
            self._as(f"as-{kind}", {f"as-{kind}/{seed}": (seed, make(seed)) for seed in self.seeds})

    # Sizes and rates

    @property
    def eighth(self) -> int:
        """An eighth of the full rank."""
        return max(1, self.text_set.rank // 8)

    @property
    def ranks(self) -> list[int]:
        """From an eighth of the full rank to twice it."""
        return [self.eighth * 2**power for power in range(5)]

    @property
    def recovery(self) -> int:
        """Steps of a recovery."""
        return max(1, round(RECOVERY_SHARE * self.text_set.steps))

    def rate(self, rank: int) -> float:
        """The learning rate of an even rank, chosen on validation rows; others are looked for by rate ~ rank^-1/2."""
        full = self.text_set.rank
        centre = 2e-3 if rank == full else self.rate(full) * (full / rank) ** 0.5
        return self._chosen(f"rank{rank}", centre, self.lab.even(rank))

    def _chosen(self, name: str, centre: float, ranks: Mapping[str, int]) -> float:
        return self._tuned(name, centre, ranks, self.text_set.steps // 2) / 2 ** self.record.halvings(name)

    def _tuned(
        self, name: str, centre: float, ranks: Mapping[str, int], steps: int, start: Params | None = None
    ) -> float:
        """The rate by the validation loss of short trainings of one seed.

        The best for what goes on from `start`, which is as short itself. Else the lowest of those as good as the best,
        within the margin of a loss: what it is for trains longer.
        """
        rates = [centre * factor for factor in RATES_AROUND]
        while True:
            self._train(
                Training(
                    key=f"pilot/{name}/{rate:.4g}",
                    ranks=ranks,
                    rate=rate,
                    steps=steps,
                    seed=PILOT_SEED,
                    start=start,
                    is_pilot=True,
                )
                for rate in rates
            )
            losses = [self.record.results[f"pilot/{name}/{rate:.4g}"]["validation"]["loss"] for rate in rates]
            limit = min(losses) + (practical_margin("loss", min(losses)) if start is None else 0.0)
            best = next(index for index, loss in enumerate(losses) if loss <= limit)
            if 0 < best < len(rates) - 1 or len(rates) >= MOST_RATES:
                return rates[best]
            rates = [rates[0] / 2, *rates] if best == 0 else [*rates, rates[-1] * 2]

    # Trainings

    def _trained(self, name: str, rank: int, seeds: Sequence[int], steps: int, *, is_settled: bool = False) -> None:
        """Train an even rank at its own rate. is_settled: that rate is one at which nothing more is changed."""
        keys = [f"{name}/{seed}" for seed in seeds]

        def train() -> None:
            rate, ranks = self.rate(rank), self.lab.even(rank)
            self._train(
                Training(key=key, ranks=ranks, rate=rate, steps=steps, seed=seed)
                for key, seed in zip(keys, seeds, strict=True)
            )

        if is_settled:
            train()
        elif any(key not in self.record.results for key in keys):
            self._settle(f"rank{rank}", keys, train)

    def _as(self, name: str, arms: Mapping[str, tuple[int, Mapping[str, int]]]) -> None:
        """Train with given ranks. arms: seed and ranks by key."""
        first = next(iter(arms.values()))[1]

        def train() -> None:
            rate = self._chosen(name, self.rate(self.eighth), first)
            self._train(
                Training(key=key, ranks=ranks, rate=rate, steps=self.text_set.steps, seed=seed)
                for key, (seed, ranks) in arms.items()
            )

        self._settle(name, list(arms), train)

    def _settle(self, name: str, keys: Sequence[str], train: Callable[[], None]) -> None:
        """Train these arms; all of them again, at half the rate, as long as one of them has failed."""
        train()
        while self.record.halvings(name) < MOST_HALVINGS and any(self._has_failed(name, key) for key in keys):
            self.record.halve(name, keys)
            if name == f"rank{self.text_set.rank}":
                shutil.rmtree(self.lab.work / "full", ignore_errors=True)
                self.turned.clear()
            train()

    def _has_failed(self, name: str, key: str) -> bool:
        pilots = [each for at, each in self.record.results.items() if at.startswith(f"pilot/{name}/")]
        best = min(each["validation"]["loss"] for each in pilots)
        return bool(self.record.results[key]["validation"]["loss"] > FAILED * best)

    def _full(self, seeds: Iterable[int]) -> None:
        """Full adapters, whose folders stay; those whose folder is gone are trained again."""
        rank, steps = self.text_set.rank, self.text_set.steps
        missing = [seed for seed in seeds if not self._folder(seed).exists()]
        trainings = [
            Training(key=f"rank{rank}/{seed}", ranks=self.lab.even(rank), rate=self.rate(rank), steps=steps, seed=seed)
            for seed in missing
        ]

        def keep(training: Training, trained: Trained) -> None:
            self._store(training, trained)
            self._folder(training.seed).parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(trained.params), self._folder(training.seed))

        if trainings:
            self.lab.train(trainings, keep)

    def _train(self, trainings: Iterable[Training], use: Callable[[Training, Trained], None] | None = None) -> None:
        """Those of the trainings that have no result yet, in one pack."""
        missing = [training for training in trainings if training.key not in self.record.results]
        if missing:
            self.lab.train(missing, use or self._store)

    def _store(self, training: Training, trained: Trained) -> None:
        score = trained.score
        costs = {layer.path: layer.in_features + layer.out_features for layer in self.lab.layers}
        self.record.add(
            training.key,
            {
                "seed": training.seed,
                "rate": training.rate,
                "steps": training.steps,
                "parameters": sum(rank * costs[path] for path, rank in training.ranks.items()),
                "seconds": trained.seconds,
                "validation": dict(score.validation),
                "test": dict(score.test),
            },
        )

    # Cuts

    def _cuts(self, seed: int) -> None:
        """The whole adapter and its global and even cuts to the parameters of ranks 1, 2 and 4."""
        turned = self._turned(seed)
        whole = {path: len(found) for path, found in turned.strengths.items()}
        arms = {f"cut/whole/{seed}": whole} | {
            key: self._cut_ranks(turned, key.split("/")[1], int(key.split("/")[2])) for key in self._cut_keys(seed)
        }
        self._train(
            Training(key=key, ranks=ranks, seed=seed, start=cut(turned.params, ranks)) for key, ranks in arms.items()
        )

    def _cut_keys(self, seed: int) -> list[str]:
        return [f"cut/{kind}/{size}/{seed}" for kind in ("global", "even") for size in self._sizes()]

    def _is_cut(self, seed: int) -> bool:
        """Whether all of its cuts are measured, for which its full adapter need not be there any more."""
        return all(key in self.record.results for key in [*self._cut_keys(seed), f"squeeze/{seed}"])

    def _recovered(self, kind: str) -> None:
        """Cuts to an eighth, trained on for a few steps at a rate of their own."""
        eighth, steps, first = self.eighth, self.recovery, self.seeds[0]
        keys = {seed: f"recovered/{kind}/{seed}" for seed in self.seeds}
        if all(key in self.record.results for key in keys.values()):
            return
        starts = {seed: self._turned(seed) for seed in self.seeds}
        ranks = {seed: self._cut_ranks(turned, kind, eighth) for seed, turned in starts.items()}
        params = {seed: cut(turned.params, ranks[seed]) for seed, turned in starts.items()}
        centre = self.rate(self.text_set.rank) / 2
        rate = self._tuned(f"recovered-{kind}", centre, ranks[first], steps, params[first])
        self._train(
            Training(
                key=key,
                ranks=ranks[seed],
                rate=rate,
                steps=steps,
                seed=seed + ORDER_OF_OTHERS,
                start=params[seed],
            )
            for seed, key in keys.items()
        )

    def _sizes(self) -> list[int]:
        return [rank for rank in (1, 2, 4) if rank < self.text_set.rank]

    def _turned(self, seed: int) -> Turned:
        """The squeeze of a full adapter, by the product's functions; its ranks and its cost are a result too."""
        if seed in self.turned:
            return self.turned[seed]
        self._full([seed])
        folder = self._folder(seed).with_suffix("")
        self.lab.export(load_file(self._folder(seed)), self.text_set.rank, folder)
        turned = self.turned[seed] = self.lab.squeeze(folder)
        if f"squeeze/{seed}" not in self.record.results:
            ranks = {size: self._cut_ranks(turned, "global", size) for size in self._sizes()}
            listed = {str(size): [of.get(path, 0) for path in self.lab.paths] for size, of in ranks.items()}
            self.record.add(f"squeeze/{seed}", {"seconds": turned.seconds, "ranks": listed})
        return turned

    def _cut_ranks(self, turned: Turned, kind: str, size: int) -> dict[str, int]:
        """Ranks above 0 of a cut to the parameters of an even rank."""
        paths, strengths = list(turned.strengths), list(turned.strengths.values())
        costs = [turned.costs[path] for path in paths]
        ranks = even_ranks(strengths, size)
        if kind == "global":
            ranks = global_ranks(strengths, costs, parameters(ranks, costs))
        return {path: rank for path, rank in zip(paths, ranks, strict=True) if rank}

    def _folder(self, seed: int) -> Path:
        return self.lab.work / "full" / f"{seed}.safetensors"

    # Ranks to train with

    def _squeezed_ranks(self, seed: int) -> dict[str, int]:
        """Those of the next seed's adapter, cut globally."""
        other = self.seeds[(self.seeds.index(seed) + 1) % len(self.seeds)]
        ranks = self.record.results[f"squeeze/{other}"]["ranks"][str(self.eighth)]
        return {path: rank for path, rank in zip(self.lab.paths, ranks, strict=True) if rank}

    def _random_ranks(self, seed: int) -> dict[str, int]:
        """From 1 to four times the mean, with as many parameters as the even rank."""
        budget = sum(self.eighth * (layer.in_features + layer.out_features) for layer in self.lab.layers)
        return random_ranks(self.lab.layers, budget, seed=seed, low=1, high=4 * self.eighth)


PARTS: dict[str, Callable[[Arms], None]] = {
    "cuts": Arms.cuts,
    "small": Arms.small,
    "gate": Arms.gate,
    "ranks": Arms.ranks_to_train,
}
"""In the order in which they are measured for all sets."""
