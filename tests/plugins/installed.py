"""Puts packages of this folder where Python finds them, as an installer without a network would."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

HERE = Path(__file__).parent


def install(target: Path, *names: str, source: Path = HERE) -> Path:
    """Install these packages into a folder, for PYTHONPATH or `sys.path`; returns the folder."""
    for name in names:
        project = tomllib.loads((source / name / "pyproject.toml").read_text(encoding="utf-8"))
        facts, modules = project["project"], project["tool"]["setuptools"]["py-modules"]
        for module in modules:
            shutil.copy(source / name / f"{module}.py", target)
        write_metadata(target, facts["name"], facts["version"], facts["entry-points"])
    return target


def write_metadata(target: Path, name: str, version: str, points: dict[str, dict[str, str]]) -> None:
    """The files by which an installed package says what it is and what it adds."""
    folder = target / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [
        line
        for group, entries in points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
