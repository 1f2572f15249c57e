"""Lists of what can be named in a space file: what is built in, and what installed packages bring as entry points.

A line of a registry is a name and where its entry is, `module:attribute`, the form that entry points have too: nothing
is imported before it is asked for, and a name that is built in never makes anybody look at the installed packages.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from automl.errors import PluginError
from automl.nearest import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(MutableMapping[str, T], Generic[T]):
    """Entries of one kind by name: the built-in ones in the order of their lines, then those of installed packages.

    Asking for a name raises KeyError if nobody has it, and PluginError if its package cannot be loaded. Going through
    all values passes over such a package, with one line in the log. An entry that is set counts for this process only.
    """

    def __init__(
        self,
        kind: str,
        lines: Mapping[str, str],
        admit: Callable[[object], T],
        families: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """kind: what an entry is, a word; its entry points are in the group `automl.<kind>s`. lines: name -> place.

        admit: the entry that a loaded object stands for; raises TypeError, saying what is missing, if there is none.
        families: word -> place of a function, for names `word:rest`: it makes of the rest what would be loaded, or
        raises PluginError. Such names are not listed.
        """
        self.kind = kind
        self.group = f"automl.{kind}s"
        self.built_in = tuple(lines)
        self._lines = dict(lines)
        self._admit = admit
        self.families = tuple(families)
        self._families = dict(families)
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __setitem__(self, name: str, entry: T) -> None:
        self._loaded[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._lines or name in self._loaded or self._family(name) is not None or name in self._brought()

    def __iter__(self) -> Iterator[str]:
        loaded = (name for name in self._loaded if self._family(name) is None)
        return iter(dict.fromkeys([*self._lines, *loaded, *sorted(self._brought())]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def usable(self) -> dict[str, T]:
        """All entries that can be loaded, by name; of any other the log says why it is left out."""
        found = {}
        for name in self:
            try:
                found[name] = self[name]
            except PluginError as error:
                logger.warning("%s", error)
        return found

    def unknown(self, name: str) -> str:
        """What to say of a name that nobody has: the known ones, and the nearest."""
        known = self.known()
        return f"unknown {self.kind} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}"

    def known(self) -> list[str]:
        """The names as a message lists them, a family as `word:…`."""
        return [*self, *(f"{family}:…" for family in self.families)]

    def _load(self, name: str) -> T:
        if name in self._lines:
            return self._admit(_at(self._lines[name]))
        if family := self._family(name):
            return self._admit(_at(family)(name.partition(":")[2]))
        points = self._brought().get(name)
        if points is None:
            raise KeyError(name)
        if len(points) > 1:
            packages = " and ".join(map(_package, points))
            raise PluginError(f"{self.kind} {name!r} is brought by {packages}; remove one of them")
        try:
            return self._admit(points[0].load())
        except Exception as error:  # whatever a package does that is not ours
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(f"{self.kind} {name!r} of {_package(points[0])} cannot be used: {reason}") from error

    def _family(self, name: object) -> str | None:
        """Place of the function that makes entries of this name's family, if it is of one."""
        word, colon, _ = name.partition(":") if isinstance(name, str) else ("", "", "")
        return self._families.get(word) if colon else None

    def _brought(self) -> Mapping[str, Sequence[EntryPoint]]:
        return _entry_points(self.group, tuple(sys.path))


def instance_of(wanted: type[T]) -> Callable[[object], T]:
    """What admits objects of this class and no others; a `Registry` is given it."""

    def admit(found: object) -> T:
        if isinstance(found, wanted):
            return found
        raise TypeError(f"{found!r} is not an {wanted.__module__}.{wanted.__qualname__}")

    return admit


def _at(place: str) -> Any:
    """What is at `module:attribute`."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


@lru_cache(maxsize=64)
def _entry_points(group: str, path: tuple[str, ...]) -> Mapping[str, Sequence[EntryPoint]]:
    """Entry points of the packages that are installed along the path, by name. Loads none of them."""
    from importlib.metadata import entry_points  # 70 ms, which a name that is built in does not pay

    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
