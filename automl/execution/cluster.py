"""Whether a Ray cluster that is to be joined answers, without Ray: Ray itself would go on trying for minutes."""

from __future__ import annotations

import socket

_SECONDS = 5.0


def unreachable(address: str | None, seconds: float = _SECONDS) -> str:
    """Why nothing answers at the address, in one line; empty if something does, or if only Ray can tell."""
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit() or "://" in host:
        return ""  # none, "auto", or a kind of address that only Ray understands
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        return f"no Ray cluster answers at {address}: {getattr(error, 'strerror', None) or error}"
    return ""
