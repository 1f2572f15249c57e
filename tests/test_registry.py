"""Registries: what is built in costs nothing to name, and what packages bring is found, named and never trusted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from automl.errors import PluginError
from automl.registry import Registry
from tests.plugins.installed import write_metadata


def number(found: object) -> int:
    if isinstance(found, int):
        return found
    raise TypeError(f"{found!r} is not a number")


@pytest.fixture
def registry() -> Registry[int]:
    return Registry("number", {"one": "string:whitespace", "ten": "sys:maxsize"}, number)


def bring(folder: Path, module: str, text: str, *, package: str = "some-numbers", **points: str) -> None:
    """Install a package with one module and these entry points into a folder of the path."""
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    write_metadata(folder, package, "1.2", {"automl.numbers": points})


def test_what_is_built_in_is_read_when_it_is_asked_for(registry: Registry[int]) -> None:
    assert list(registry) == ["one", "ten"] == list(registry.built_in)
    assert registry["ten"] == sys.maxsize
    with pytest.raises(TypeError, match="is not a number"):
        registry["one"]
    with pytest.raises(KeyError):
        registry["two"]


def test_names_of_installed_packages_follow(
    registry: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, "numbers_brought", "SEVEN = 7", seven="numbers_brought:SEVEN", ten="numbers_brought:SEVEN")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(registry) == ["one", "ten", "seven"]
    assert (registry["seven"], "seven" in registry, len(registry)) == (7, True, 3)
    assert registry["ten"] == sys.maxsize, "a built-in name keeps its meaning"
    assert registry.unknown("sevn") == "unknown number 'sevn'; known: one, ten, seven (did you mean 'seven'?)"


BROKEN = {
    "does not import": ("import no_such_package", "X", "ModuleNotFoundError: No module named 'no_such_package'"),
    "fails": ("raise RuntimeError('two\\nlines')", "X", "RuntimeError: two lines"),
    "lacks the name": ("", "X", "AttributeError: module 'numbers_broken' has no attribute 'X'"),
    "is something else": ("X = 'seven'", "X", "TypeError: 'seven' is not a number"),
}


@pytest.mark.parametrize(("text", "attribute", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_named_in_one_line(
    registry: Registry[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
    attribute: str,
    reason: str,
) -> None:
    bring(tmp_path, "numbers_broken", text, seven=f"numbers_broken:{attribute}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numbers_broken", raising=False)
    assert registry["ten"]
    with pytest.raises(PluginError) as caught:
        registry["seven"]
    assert str(caught.value) == f"number 'seven' of some-numbers 1.2 cannot be used: {reason}"
    monkeypatch.delitem(sys.modules, "numbers_broken", raising=False)
    registry["one"] = 1
    assert registry.usable() == {"one": 1, "ten": sys.maxsize}
    assert caplog.messages == [str(caught.value)]


def test_a_name_that_two_packages_bring_is_nobodys(
    registry: Registry[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, "numbers_first", "X = 7", package="first", seven="numbers_first:X")
    bring(tmp_path, "numbers_second", "X = 8", package="second", seven="numbers_second:X")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"'seven' is brought by (first|second) 1.2 and (first|second) 1.2; remove"):
        registry["seven"]


def test_an_entry_that_is_set_counts_until_it_is_deleted(registry: Registry[int]) -> None:
    registry["two"] = 2
    assert (registry["two"], list(registry)) == (2, ["one", "ten", "two"])
    del registry["two"]
    assert "two" not in registry
