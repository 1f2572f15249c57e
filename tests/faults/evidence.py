"""Summaries of fault runs as the table of docs/reliability.md: `python -m tests.faults.evidence out.json …`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_SECONDS = ("takeover_seconds", "recovery_seconds", "refused_seconds", "zombie_seconds", "end_seconds")


def table(summaries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table, one for each scenario that ran; of one that ran twice, the later run."""
    rows = {row["id"]: row for summary in summaries for row in summary["scenarios"]}
    yield "| scenario | what was done to it | N | violations | rate below (95 %) | worst seconds |"
    yield "|---|---|---:|---:|---:|---|"
    for row in sorted(rows.values(), key=lambda row: str(row["id"])):
        bound = f"{100 * row['bound_95']:.2g} %" if row["bound_95"] is not None and row["n"] >= 4 else "–"
        known = {name: row["details"][name] for name in _SECONDS if name in row["details"]}
        times = [f"{name.removesuffix('_seconds')} {seconds:.1f}" for name, seconds in known.items()]
        count = f"skipped: {row['skipped']}" if row["skipped"] else f"{row['n']:,} {row['injected']}"
        yield f"| {row['id']} | {row['title']} | {count} | {row['violations']} | {bound} | {', '.join(times)} |"
    kills = [row for row in rows.values() if row["injected"] == "kills" and not row["violations"]]
    total = sum(row["n"] for row in kills)
    if total:
        yield ""
        bound = f"{100 * min(1.0, 3 / total):.2g} %"
        yield f"All kills together: N = {total}, so the rate of violations is below {bound} (95 %)."


def main() -> None:
    summaries = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    sys.stdout.write("\n".join(table(summaries)) + "\n")


if __name__ == "__main__":
    main()
