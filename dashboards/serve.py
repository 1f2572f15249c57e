"""The process that serves: who may connect, and until when."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from automl.errors import ConfigError, Problem
from automl.storage.sql import open_database
from dashboards.access import VARIABLE, read_token
from dashboards.app import build_app
from dashboards.guard import Rules

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen. port 0: any free one. names: further host names that requests may be for."""

    host: str = "127.0.0.1"
    port: int = 8321
    names: tuple[str, ...] = ()


def serve(url: str, address: Address, token_file: Path | None, ready: Callable[[str], None]) -> None:
    """Serve a database until SIGINT or SIGTERM. ready: told the address once connections are accepted.

    Raises ConfigError if others than this machine's users could connect and there is no token, or the port is taken.
    """
    rules = rules_for(address, token_file)
    with ExitStack() as stack:
        database = stack.enter_context(open_database(url, create=False, read_only=True))
        writable = stack.enter_context(open_database(url, create=False)) if rules.token else None
        listener = stack.enter_context(_listener(address))
        app = build_app(database, rules, writable=writable)
        listener.listen()
        ready(f"http://{_shown(address.host)}:{listener.getsockname()[1]}/")
        uvicorn.Server(server_config(app)).run(sockets=[listener])


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How it is served: nothing is logged of a request, no header of a proxy is believed, connections are few."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        limit_concurrency=_MOST_AT_ONCE,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
    )


def rules_for(address: Address, token_file: Path | None, environment: Mapping[str, str] = os.environ) -> Rules:
    """Rules for who may connect. Raises ConfigError for an address beyond this machine without a token."""
    token = read_token(token_file, environment)
    is_local = _is_loopback(address.host)
    if not is_local and token is None:
        message = f"others can connect to {address.host}; give a token by --token-file FILE or {VARIABLE}"
        raise ConfigError([Problem("", 0, 0, "--host", message)])
    return Rules(hosts=_names(address), token=token, demands_token=not is_local)


def _names(address: Address) -> frozenset[str]:
    return frozenset(name.lower() for name in (*_LOCAL_NAMES, _shown(address.host), *address.names))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listener(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        place = f"{address.host}:{address.port}"
        raise ConfigError([Problem("", 0, 0, "--port", f"cannot listen on {place}: {error.strerror}")]) from None
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
