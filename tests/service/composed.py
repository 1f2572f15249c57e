"""docker-compose.yml as the tests read it: anchors and default settings resolved, one mapping for each service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
SETTING = re.compile(r"\$\{(AUTOML_\w+):-([^}]*)\}")
"""A setting and its default, as the compose file writes it."""
DOCUMENT: dict[str, Any] = yaml.safe_load(SETTING.sub(r"\2", FILE.read_text(encoding="utf-8")))
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
ONCE = ("migrate", "roles")
"""Services that run to their end; all others stay."""


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    """What the file sets, in a mapping."""
    return dict(service.get("environment", {}))


def probe_of(service: dict[str, Any]) -> list[str]:
    """Program and arguments of the health check, which goes through no shell."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    return list(command)
