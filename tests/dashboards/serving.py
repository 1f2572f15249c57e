"""A served dashboard in a thread: the real application, the real server, a real socket."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import uvicorn

from automl.storage.sql import open_database
from dashboards.app import build_app
from dashboards.serve import Address, rules_for, server_config

TOKEN = "a-token-of-more-than-thirty-two-characters"


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class _AtOnce(http.client.HTTPConnection):
    """Sends head and body of a request in one piece.

    A server closes the connection after a head that is no HTTP. A body still on its way would then reset the
    connection, and with it the answer.
    """

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=240)
        self._pieces = bytearray()

    def send(self, data: Any) -> None:
        self._pieces += data

    def getresponse(self) -> http.client.HTTPResponse:
        super().send(bytes(self._pieces))
        return super().getresponse()


class Site:
    """A running dashboard, asked byte by byte: nothing is normalised on the way."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str | None) -> Answer:
        """headers: names with _ for -; None leaves a header out."""
        given: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            given.setdefault("Content-Length", str(len(body)))
        connection = _AtOnce(self.port)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read().decode("utf-8", "replace"))
        finally:
            connection.close()

    def post(self, path: str, value: object, **headers: str | None) -> Answer:
        """A post of JSON, with the token unless another Authorization is given."""
        given: dict[str, str | None] = {"Content_Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        return self.ask(path, "POST", json.dumps(value).encode(), **{**given, **headers})


@contextmanager
def site(url: str, *, token: str | None = TOKEN, demands_token: bool = False) -> Iterator[Site]:
    """Serve a database until the block ends. demands_token: as if others than this machine could connect."""
    rules = rules_for(Address(), None, {"AUTOML_DASHBOARD_TOKEN": token} if token else {})
    if demands_token:
        rules = type(rules)(hosts=rules.hosts, token=rules.token, demands_token=True)
    with ExitStack() as stack:
        database = stack.enter_context(open_database(url, create=False, read_only=True))
        writable = stack.enter_context(open_database(url, create=False)) if token else None
        server = uvicorn.Server(server_config(build_app(database, rules, writable=writable)))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Site(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(timeout=240)
