"""The ready space files that come with the program, from a checkout and from an installed wheel alike."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from automl.errors import ConfigError, Problem

_DISTRIBUTION = "automl-lora"
_FOLDER = "search_spaces"


class Preset(NamedTuple):
    """A ready space file: its name, where it lies, and what it says about itself in its first line."""

    name: str
    path: Path
    about: str


def presets() -> list[Preset]:
    """All presets by name; empty if the installation has lost them."""
    return [Preset(path.stem, path, _first_line(path)) for path in sorted(_folder().glob("*.yaml"))]


def preset(name: str) -> Preset:
    """The preset of that name. Raises ConfigError naming those there are."""
    known = {each.name: each for each in presets()}
    if name not in known:
        message = f"no preset of that name; there is: {', '.join(known) or 'none'}"
        raise ConfigError([Problem("", 0, 0, name, message)])
    return known[name]


def _folder() -> Path:
    checkout = Path(__file__).resolve().parents[2] / _FOLDER
    if checkout.is_dir():
        return checkout
    files = metadata.files(_DISTRIBUTION) or []
    installed = [Path(str(file.locate())).resolve() for file in files if file.parent.name == _FOLDER]
    return installed[0].parent if installed else checkout


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return lines.readline().strip("# \n")
