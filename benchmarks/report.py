"""What a benchmark says: a table for people, a JSON document for machines, and the options all commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Disturbance, machine


class Report:
    """The result of one command, growing while it runs, so that an interrupted run leaves what it has measured.

    The document: benchmark, arguments, machine, disturbance (load and stolen time over the run), and whatever is
    added. Raw rounds belong into it beside their medians.
    """

    def __init__(self, benchmark: str, arguments: argparse.Namespace) -> None:
        self._path: Path | None = arguments.json
        self._disturbance = Disturbance()
        self.document: dict[str, Any] = {
            "benchmark": benchmark,
            "arguments": {
                name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
            },
            "machine": machine(),
        }

    def add(self, key: str, value: object) -> None:
        """Set a part of the document and write what there is so far."""
        self.document[key] = value
        self.write()

    def append(self, key: str, value: object) -> None:
        """Add to a list in the document and write what there is so far."""
        self.document.setdefault(key, []).append(value)
        self.write()

    def write(self) -> None:
        """Write the document, if a file was asked for."""
        self.document["disturbance"] = self._disturbance.read()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")

    def print_machine(self) -> None:
        """One line on where this runs."""
        here = self.document["machine"]
        print(
            f"{here['processor']}, {here['usable_cpus']} CPUs, load {here['load'][0]:.1f}; "
            f"torch {here['torch']}, transformers {here['transformers']}, peft {here['peft']}; commit {here['commit']}"
        )


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options every benchmark has."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--quick", action="store_true", help="tiny models and few steps: shows that it runs, no figures")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything measured, raw rounds included")
    return made


def numbers(text: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers, as an option's type."""
    return tuple(int(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list of names, as an option's type."""
    return tuple(part.strip() for part in text.split(","))


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned columns under the keys of the first one; numbers to the right."""
    if not rows:
        return "(nothing measured)"
    cells = [list(rows[0]), *([str(row.get(key, "")) for key in rows[0]] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    left = [not _is_number(cells[1][column]) for column in range(len(widths))]
    lines = [
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-–"
