"""A night is told to webhook, mail and command; what goes wrong is one line without a secret, and nothing more."""

from __future__ import annotations

import hashlib
import hmac
import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from automl.schedule.notify import Notification, parse_target, send

MESSAGE = Notification(subject="automl: nightly REGRESSION", text="worse", detail={"state": "REGRESSION", "value": 0.7})
SECRET = "canary-7f3a"


@contextmanager
def web_server(status: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server that answers every POST with this status; its URL, and what it was told."""
    told: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", told
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """The least SMTP server that Python's client talks to; its port and the lines of the mail."""
    lines: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 here")
            while (line := self.rfile.readline().decode().strip().upper()) != "QUIT":
                if line == "DATA":
                    self.say("354 go on")
                    while (text := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                        lines.append(text)
                self.say("250 fine")
            self.say("221 bye")

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_address[1], lines
        thread.join()


def test_a_webhook_is_signed_with_a_secret_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n", encoding="utf-8")
    with web_server(204) as (url, told):
        for environment in (
            {"AUTOML_WEBHOOK_SECRET": SECRET},
            {"AUTOML_WEBHOOK_SECRET_FILE": str(tmp_path / "secret")},
            {},
        ):
            assert send(parse_target(f"webhook:{url}"), MESSAGE, environment) is None
    signature = "sha256=" + hmac.new(SECRET.encode(), told[0][1], hashlib.sha256).hexdigest()
    assert [headers.get("X-Automl-Signature") for headers, _ in told] == [signature, signature, None]
    assert json.loads(told[0][1]) == MESSAGE.detail


def test_the_url_itself_may_be_a_secret(tmp_path: Path) -> None:
    with web_server(200) as (url, told):
        (tmp_path / "url").write_text(f"{url}/{SECRET}?token={SECRET}\n", encoding="utf-8")
        assert send(parse_target(f"webhook:@{tmp_path / 'url'}"), MESSAGE, {}) is None
        assert send(parse_target("webhook:$HOOK"), MESSAGE, {"HOOK": f"{url}/{SECRET}"}) is None
    assert len(told) == 2


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_refuses_is_named_without_its_secret(status: int) -> None:
    with web_server(status) as (url, told):
        problem = send(parse_target("webhook:$HOOK"), MESSAGE, {"HOOK": f"{url}?token={SECRET}"})
    assert problem == f"webhook: the server answered {status}"
    assert len(told) == 1  # a redirection is not followed


def test_a_server_that_speaks_something_else_is_one_line() -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert send(parse_target(f"webhook:http://127.0.0.1:{server.server_address[1]}/"), MESSAGE, {}) is not None
        thread.join()


def test_a_mail_is_sent() -> None:
    with mail_server() as (port, lines):
        environment = {"AUTOML_SMTP_HOST": "127.0.0.1", "AUTOML_SMTP_PORT": str(port), "AUTOML_SMTP_SECURITY": "none"}
        assert send(parse_target("mail:team@example.org"), MESSAGE, environment) is None
    assert "Subject: automl: nightly REGRESSION" in lines
    assert "To: team@example.org" in lines
    assert lines[-1] == "worse"


def test_a_command_gets_json_and_no_secret(tmp_path: Path) -> None:
    script = tmp_path / "notify.py"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "seen = {'told': json.load(sys.stdin), 'argv': sys.argv[1:], 'url': os.environ.get('AUTOML_DB_URL')}\n"
        f"open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(seen))\n",
        encoding="utf-8",
    )
    script.chmod(0o700)
    given = {"AUTOML_DB_URL": SECRET, "PATH": "/usr/bin", "AUTOML_COMMANDS": str(tmp_path)}
    assert send(parse_target("command:notify.py"), MESSAGE, given) is None
    seen = json.loads((tmp_path / "seen").read_text(encoding="utf-8"))
    assert seen == {"told": MESSAGE.detail, "argv": [], "url": None}


# What a schedule's row says is a name at most: no path, no argument, nothing that older versions would have run.
@pytest.mark.parametrize(
    "line",
    ["/usr/bin/touch {ran}", "touch {ran}", "../touch", "sub/touch", ".hidden", "a;touch {ran}", "$(id)"],
)
def test_a_command_line_of_the_database_is_never_run(line: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    target = parse_target("command:" + line.format(ran=ran))
    assert "is not the name of a file" in target.problem
    said = send(target, MESSAGE, {"AUTOML_COMMANDS": str(tmp_path), "PATH": "/usr/bin"})
    assert (said, ran.exists()) == (target.problem, False)


@pytest.mark.parametrize(
    ("mode", "folder_mode", "said"),
    [
        (None, 0o700, "tell: No such file or directory"),
        (0o600, 0o700, "tell: is not a program; chmod +x"),
        (0o720, 0o700, "tell: others could change it; chown and chmod go-w"),
        (0o702, 0o700, "tell: others could change it; chown and chmod go-w"),
        (0o700, 0o770, "commands: others could change it; chown and chmod go-w"),
        (0o700, 0o700, "command: ended with exit code 3"),
    ],
)
def test_a_command_is_a_program_that_nobody_else_can_change(
    mode: int | None, folder_mode: int, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "commands"
    folder.mkdir()
    folder.chmod(folder_mode)
    if mode is not None:
        (folder / "tell").write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
        (folder / "tell").chmod(mode)
    problem = send(parse_target("command:tell"), MESSAGE, {"AUTOML_COMMANDS": str(folder), "PATH": "/bin"})
    assert problem is not None
    assert problem.endswith(said)


@pytest.mark.parametrize(
    ("target", "environment", "problem"),
    [
        ("webhook:http://127.0.0.1:1/x", {}, "webhook: cannot be reached: ConnectionRefusedError"),
        ("webhook:$HOOK", {}, "notify: webhook: the environment variable HOOK is not set"),
        ("webhook:$HOOK", {"HOOK": SECRET}, "notify: webhook: what $HOOK holds is not an http or https URL"),
        ("webhook:@/no/such/file", {}, "notify: /no/such/file: cannot be read: No such file or directory"),
        ("mail:a@b.org", {}, "notify: mail: the environment variable AUTOML_SMTP_HOST is not set"),
        ("mail:a@b.org", {"AUTOML_SMTP_HOST": "127.0.0.1", "AUTOML_SMTP_PORT": "1"}, "mail: Connection refused"),
        ("webhook:$HOOK", {"HOOK": f"http://127.0.0.1:1/{SECRET} x"}, "webhook: InvalidURL"),
    ],
)
def test_what_fails_is_one_line(target: str, environment: dict[str, str], problem: str) -> None:
    assert send(parse_target(target), MESSAGE, environment) == problem


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("slack:x", "is no target"),
        ("webhook:", "is no target"),
        ("webhook:ftp://host/x", "is not an http or https URL"),
        ("webhook:file:///etc/passwd", "is not an http or https URL"),
        (f"webhook:https://host/x?token={SECRET}", "is a secret"),
        (f"webhook:https://user:{SECRET}@host/x", "is a secret"),
        ("mail:a b@c", "is not a mail address"),
        ("mail:a@b,c@d", "is not a mail address"),
        ("command:/x y", "is not the name of a file"),
    ],
)
def test_a_wrong_target_is_refused_when_the_schedule_is_made(target: str, problem: str) -> None:
    found = parse_target(target).problem
    assert problem in found
    assert SECRET not in found
