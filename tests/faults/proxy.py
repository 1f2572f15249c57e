"""A TCP proxy in front of a database that can refuse, swallow and reset: an outage without root rights."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, Self

Mode = Literal["pass", "refuse", "blackhole"]


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`, from a thread of its own.

    pass: as it comes. refuse: nobody listens, open connections are reset. blackhole: connections are accepted and
    stay open, but not a byte arrives any more.
    """

    def __init__(self, target: int, port: int) -> None:
        self.port = port
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.set("pass")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set("refuse")
        self._do(self._cancel)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def set(self, mode: Mode) -> None:
        """Change what happens from now on; returns when it is so."""
        self._do(lambda: self._change(mode))

    def reset(self) -> None:
        """Break the connections there are; new ones pass."""
        self._do(self._abort)

    def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(30)

    async def _change(self, mode: Mode) -> None:
        if mode == "pass":
            self._flowing.set()
        else:
            self._flowing.clear()
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
            await self._abort()
        if mode != "refuse" and self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _abort(self) -> None:
        for writer in self._writers:
            if writer.is_closing():
                continue
            own = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST instead of FIN
            writer.transport.abort()

    async def _cancel(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            source, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(upstream)
            await asyncio.gather(self._pump(reader, upstream), self._pump(source, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
