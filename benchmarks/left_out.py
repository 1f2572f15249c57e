"""What replayed searches say of tasks that the policy was not chosen on: each task is left out once.

    python -m benchmarks.replay --tables taskset,lcbench,lora --workers 1,8 --seeds 20 --rows rows.jsonl …
    python -m benchmarks.left_out --rows rows.jsonl

For every task, the policy of ours is taken that has the least mean regret on all other tasks, kinds of tables and
numbers of trials at once counting alike; its searches of that task are what is reported. The rivals are the best of
Optuna's pairs and the best top-k rule on all tasks of the kind, this one included: they are chosen in hindsight, we are
not. Differences are paired by seed; their intervals are over seeds, for these tasks. `lora-at-alpha` are the tasks of
`lora` with the learning rate in another coordinate, which is a part of a policy of ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from automl.verify.statistics import Estimate, paired
from benchmarks.replay_world import BUDGETS, LORA
from benchmarks.report import Report, names, numbers, parser, table

AT_ALPHA = "@alpha"
"""Ends the name of a policy whose learning rates are searched in the other coordinate."""

LEVEL = 0.95


class Place(NamedTuple):
    """One task at so many trials at once."""

    kind: str
    task: str
    workers: int


Regrets = tuple[float, ...]
"""At the budgets of the replay."""


@dataclass(frozen=True, slots=True)
class Searches:
    """Regrets by arm, place and seed. Only seeds that all of them have."""

    by_arm: Mapping[str, Mapping[Place, Mapping[int, Regrets]]]
    seeds: Sequence[int]

    @property
    def places(self) -> list[Place]:
        """All that some arm has searched."""
        return sorted({place for places in self.by_arm.values() for place in places})

    def at(self, arm: str, place: Place) -> Mapping[int, Regrets]:
        """The searches of an arm there; elsewhere than on LoRA tables a coordinate of rates changes nothing."""
        searched = arm if place.kind in LORA else arm.removesuffix(AT_ALPHA)
        return self.by_arm[searched][place]

    def mean(self, arm: str, places: Iterable[Place]) -> float:
        """Mean over budgets and seeds, then tasks, then kinds and numbers of trials at once."""
        groups: dict[tuple[str, int], list[float]] = {}
        for place in places:
            found = [value for seed in self.seeds for value in self.at(arm, place)[seed]]
            groups.setdefault((place.kind, place.workers), []).append(statistics.fmean(found))
        return statistics.fmean(map(statistics.fmean, groups.values()))

    def is_whole(self, arm: str) -> bool:
        """Whether the arm has searched everywhere with all seeds."""
        try:
            return all(self.at(arm, place).keys() >= set(self.seeds) for place in self.places)
        except KeyError:
            return False


def read(path: Path, workers: Sequence[int] = ()) -> Searches:
    """The rows of a replay. workers: numbers of trials at once that count; empty = all. Raises OSError, and ValueError
    if a line is no row.
    """
    found: dict[str, dict[Place, dict[int, Regrets]]] = {}
    seeds: dict[str, set[int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            regrets = tuple(float(row["regret"][str(budget)]) for budget in BUDGETS)
            arm, kind, seed = str(row["arm"]), str(row["kind"]), int(row["seed"])
            place = Place(kind, str(row["task"]), int(row["workers"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: no row of benchmarks.replay: {error!r}") from error
        if workers and place.workers not in workers:
            continue
        if kind == LORA[1]:
            arm, place = arm + AT_ALPHA, place._replace(kind=LORA[0])
        found.setdefault(arm, {}).setdefault(place, {})[seed] = regrets
        seeds.setdefault(arm, set()).add(seed)
    common = set.intersection(*seeds.values()) if seeds else set()
    return Searches(found, sorted(common))


def is_rival(arm: str) -> bool:
    """Whether an arm is not ours."""
    return "+" in arm or arm.startswith("top-k")


def chosen(searches: Searches, arms: Sequence[str], task: tuple[str, str]) -> str:
    """The arm that is best on all tasks but this one (kind and name)."""
    others = [place for place in searches.places if place[:2] != task]
    return min(arms, key=lambda arm: searches.mean(arm, others))


class Verdict(NamedTuple):
    """Ours against a rival, over the tasks of a kind. ours: by task, the policy chosen without it. better: tasks with
    a lower mean.
    """

    rival: str
    ours: Mapping[str, str]
    regret: Regrets
    of_rival: Regrets
    difference: Estimate
    better: int

    @property
    def ratio(self) -> float:
        """Our average over the rival's."""
        return statistics.fmean(self.regret) / statistics.fmean(self.of_rival)


def verdict(searches: Searches, places: Sequence[Place], ours: Mapping[str, str], rival: str) -> Verdict:
    """Compare on these places, of one kind and one number of trials at once. Raises ValueError below two seeds."""

    def by_budget(arm_of: Mapping[str, str]) -> Regrets:
        rows = [searches.at(arm_of[place.task], place)[seed] for place in places for seed in searches.seeds]
        return tuple(map(statistics.fmean, zip(*rows, strict=True)))

    def gap(place: Place, seed: int) -> float:
        own, other = (searches.at(arm, place)[seed] for arm in (ours[place.task], rival))
        return statistics.fmean(own) - statistics.fmean(other)

    gaps = {place: [gap(place, seed) for seed in searches.seeds] for place in places}
    return Verdict(
        rival=rival,
        ours=ours,
        regret=by_budget(ours),
        of_rival=by_budget(dict.fromkeys(ours, rival)),
        difference=paired([statistics.fmean(each) for each in zip(*gaps.values(), strict=True)], LEVEL),
        better=sum(statistics.fmean(each) < 0 for each in gaps.values()),
    )


def judged(searches: Searches, policies: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each kind of tables, number of trials at once, and rival. policies: of ours, to choose from."""
    arms = [arm for arm in searches.by_arm if is_rival(arm) and not arm.endswith(AT_ALPHA)]
    families = ([arm for arm in arms if "+" in arm], [arm for arm in arms if "+" not in arm])
    tasks = sorted({place[:2] for place in searches.places})
    ours = {task: chosen(searches, policies, task) for task in tasks}
    rows = []
    for kind, workers in sorted({(place.kind, place.workers) for place in searches.places}):
        places = [place for place in searches.places if (place.kind, place.workers) == (kind, workers)]
        own = {place.task: ours[place[:2]] for place in places}
        for family in filter(None, families):
            rival = min(family, key=lambda arm: searches.mean(arm, places))
            rows.append({"tables": kind, "at once": workers, "found": verdict(searches, places, own, rival)})
    return rows


def shown(row: Mapping[str, Any]) -> dict[str, object]:
    """One row of the printed table."""
    found: Verdict = row["found"]
    counts = {arm: list(found.ours.values()).count(arm) for arm in dict.fromkeys(found.ours.values())}
    estimate = found.difference
    return {
        "tables": row["tables"],
        "at once": row["at once"],
        "left out": ", ".join(f"{arm} ({count})" for arm, count in counts.items()),
        "mean at 2 5 10 20": _short(found.regret),
        "against": found.rival,
        "its mean": _short(found.of_rival),
        "ratio": f"{found.ratio:.2f}",
        "difference": f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]",
        "better on": f"{found.better} of {len(found.ours)}",
    }


def _short(regrets: Regrets) -> str:
    return " ".join(f"{regret:.3f}".lstrip("0") for regret in regrets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser("left_out", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--rows", type=Path, required=True, metavar="FILE", help="of benchmarks.replay")
    options.add_argument("--policies", type=names, default=(), help="to choose from; default: all of ours in the rows")
    options.add_argument("--workers", type=numbers, default=(), metavar="N,N,…", help="trials at once; default: all")
    args = options.parse_args(arguments)
    try:
        searches = read(args.rows, args.workers)
        policies = args.policies or [arm for arm in searches.by_arm if not is_rival(arm)]
        _check(searches, policies)
    except (OSError, ValueError) as error:
        print(error)
        return 2
    return _run(args, searches, policies)


def _check(searches: Searches, policies: Sequence[str]) -> None:
    """Raise ValueError if some arm has not searched everywhere, or there is nothing to choose or to choose by."""
    unknown = [arm for arm in policies if arm not in searches.by_arm]
    if unknown or not policies:
        raise ValueError(f"--policies: no rows of {unknown[0] if unknown else 'ours'!r}")
    if len(searches.seeds) < 2 or len({place[:2] for place in searches.places}) < 2:
        raise ValueError("two seeds that all arms share, and two tasks, are the least")
    part = [arm for arm in searches.by_arm if not searches.is_whole(arm)]
    if part:
        raise ValueError(f"{part[0]} has not searched all tasks with seeds {searches.seeds[0]} to {searches.seeds[-1]}")


def _run(args: argparse.Namespace, searches: Searches, policies: Sequence[str]) -> int:
    report = Report("left_out", args)
    rows = judged(searches, policies)
    report.add("seeds", list(searches.seeds))
    report.add("results", [{**row, "found": row["found"]._asdict()} for row in rows])
    print(f"{len(searches.seeds)} seeds, {len({place[:2] for place in searches.places})} tasks")
    print(table([shown(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
