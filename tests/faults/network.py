"""Machines with a network between them, on this one: each a network namespace, with a card, at a switch in another one.

They share files and processes, and see nothing of each other's network but what goes over the cables. Needs root and
`ip` (iproute2).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_PREFIX = "10.77.0"


def missing() -> str:
    """Why there can be no such network here; empty if there can."""
    if os.geteuid() or not shutil.which("ip"):
        return "network namespaces take root and ip (iproute2)"
    name = f"automl-{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this kernel or container allows no network namespaces"
    _ip("netns", "delete", name)
    return ""


@dataclass(frozen=True)
class Machine:
    """address: its own in the network. inside: what a command is put behind to run on it; nothing: it runs here."""

    address: str
    inside: tuple[str, ...] = ()
    plug: str = ""


class Network:
    """A switch and the machines at it; a context manager that leaves no namespace."""

    def __init__(self) -> None:
        self._name = f"automl-{secrets.token_hex(3)}"
        self._spaces: list[str] = []
        self._switch = self._space("switch")
        self._on_switch("link", "add", "switch", "type", "bridge")
        self._on_switch("link", "set", "switch", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for space in self._spaces:
            _ip("netns", "delete", space)

    def add(self) -> Machine:
        """Another machine, connected."""
        number = len(self._spaces)
        space, plug = self._space(str(number)), f"plug{number}"
        self._on_switch("link", "add", plug, "type", "veth", "peer", "name", "card", "netns", space)
        self._on_switch("link", "set", plug, "master", "switch", "up")
        _ip("-n", space, "address", "add", f"{_PREFIX}.{number}/24", "dev", "card")
        _ip("-n", space, "link", "set", "card", "up")
        # A machine asks by which card it would reach the world to know its own address.
        _ip("-n", space, "route", "add", "default", "dev", "card")
        return Machine(f"{_PREFIX}.{number}", ("ip", "netns", "exec", space), plug)

    def unplug(self, machine: Machine) -> None:
        """Nothing reaches it any more, and it reaches nothing."""
        self._on_switch("link", "set", machine.plug, "down")

    def _space(self, name: str) -> str:
        whole = f"{self._name}-{name}"
        _ip("netns", "add", whole)
        self._spaces.append(whole)
        _ip("-n", whole, "link", "set", "lo", "up")
        return whole

    def _on_switch(self, *command: str) -> None:
        _ip("-n", self._switch, *command)


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True)
