"""A psycopg connection that gives up on a server that says nothing. Imported only where PostgreSQL is used."""

from __future__ import annotations

import time
from typing import Any

import psycopg


class TimedConnection(psycopg.Connection[Any]):
    """Closes itself, with an OperationalError, when the server has not answered for `silence_seconds`.

    libpq has no such limit. A stopped server, or a proxy whose server is gone, still acknowledges what is sent, so
    neither keepalives nor tcp_user_timeout end the wait.
    """

    silence_seconds: float | None = None

    def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
        """See `psycopg.Connection.wait`."""
        if self.silence_seconds is None or len(arguments) > 1 or named.get("timeout") is not None:
            return super().wait(gen, *arguments, **named)
        began = time.monotonic()
        try:
            return super().wait(gen, *arguments, **{**named, "timeout": self.silence_seconds})
        except psycopg.OperationalError as error:
            if time.monotonic() - began < self.silence_seconds:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has not answered for {self.silence_seconds:.0f} s") from error
