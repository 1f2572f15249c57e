"""Requests that no browser of ours would make: names that are rebound, broken HTTP, nested JSON, ways out (R-25, R-27).

Nothing of it is answered as a request for us would be, nothing changes a database, and the server goes on.
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.dashboards.serving import TOKEN, Site
from tests.dashboards.test_guard import READ, SUBMIT, digest

_AUTHORIZED = f"Authorization: Bearer {TOKEN}"
_JSON = "Content-Type: application/json"

HOSTS = (
    *("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example"),
    *("evil.example#127.0.0.1", "2130706433", "0x7f.1", "0.0.0.0", "[::]", "localhost.", "127.0.0.1, evil.example"),
    *("192.168.0.1", "169.254.169.254", "[::ffff:127.0.0.1]", "evil.example/127.0.0.1", "localhost:evil.example"),
)


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_was_rebound_reads_nothing(served: Site, host: str) -> None:
    for path in (*READ, "/healthz", "/optuna", "/api/meta", "/favicon.ico"):
        answer = served.ask(path, Host=host)
        assert answer.status == 421, path
        assert "topics" not in answer.text, path


def _http(*lines: str, body: str = "") -> bytes:
    return ("\r\n".join((*lines, "", "")) + body).encode("latin-1")


def _post(*headers: str, body: str = "", path: str = SUBMIT, host: str = "Host: 127.0.0.1") -> bytes:
    return _http(f"POST {path} HTTP/1.1", host, _AUTHORIZED, "Connection: close", *headers, body=body)


_SPACE = json.dumps({"space": "version: 1\nstudy: smuggled\ntask: {type: table, file: c.npz}\nsearch: {trials: 1}\n"})
_LENGTH = f"Content-Length: {len(_SPACE)}"
BROKEN = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
    "no HTTP": b"\x00\xff\xfe" * 50 + b"\r\n\r\n",
    "version 0.9": b"GET /\r\n\r\n",
    "no version": _http("GET / HTTP/x.y", "Host: 127.0.0.1"),
    "no host": _http("GET / HTTP/1.1"),
    "two hosts": _http("GET / HTTP/1.1", "Host: 127.0.0.1", "Host: evil.example"),
    "two good hosts": _http("GET / HTTP/1.1", "Host: 127.0.0.1", "Host: 127.0.0.1"),
    "address of another": _http("GET http://evil.example/ HTTP/1.1", "Host: evil.example"),
    "forwarded": _http("GET / HTTP/1.1", "Host: evil.example", "X-Forwarded-Host: 127.0.0.1", "Forwarded: host=::1"),
    "long path": _http("GET /" + "a" * 100_000 + " HTTP/1.1", "Host: 127.0.0.1"),
    "long header": _http("GET / HTTP/1.1", "Host: 127.0.0.1", "X: " + "a" * 200_000),
    "many headers": _http("GET / HTTP/1.1", "Host: 127.0.0.1", *(f"X-{number}: {'a' * 90}" for number in range(2_000))),
    "folded": _http("GET / HTTP/1.1", "Host: evil.example", "\tHost: 127.0.0.1"),
    "control character": _http("GET /\x01 HTTP/1.1", "Host: 127.0.0.1"),
    "escaped NUL": _http("GET /studies/%00 HTTP/1.1", "Host: 127.0.0.1", "Connection: close"),
    "header in the path": _http("GET /%0d%0aHost:%20127.0.0.1 HTTP/1.1", "Host: evil.example", "Connection: close"),
    "two authorizations": _post("Authorization: Bearer other", _JSON, _LENGTH, body=_SPACE),
    "two lengths": _post(_JSON, _LENGTH, "Content-Length: 2", body=_SPACE),
    "length too short": _post(_JSON, "Content-Length: 10", body=_SPACE),
    "length with a sign": _post(_JSON, "Content-Length: +10", body=_SPACE),
    "chunk of negative size": _post(_JSON, "Transfer-Encoding: chunked", body="-1\r\n" + _SPACE),
    "chunk of endless size": _post(_JSON, "Transfer-Encoding: chunked", body="f" * 40 + "\r\n" + _SPACE),
    "other transfer": _post(_JSON, "Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"),
    "two kinds": _post(_JSON, _LENGTH, "Content-Type: text/plain", body=_SPACE),
    "two origins": _post(_JSON, _LENGTH, "Origin: http://127.0.0.1", "Origin: http://evil.example", body=_SPACE),
    "length and chunks": _post(_JSON, "Content-Length: 5", "Transfer-Encoding: chunked", body="0\r\n\r\n" + _SPACE),
    "method in lower case": _http(
        f"post {SUBMIT} HTTP/1.1", "Host: 127.0.0.1", _AUTHORIZED, _JSON, _LENGTH, body=_SPACE
    ),
    "method overridden": _post(
        _JSON, "Content-Length: 0", "X-HTTP-Method: DELETE", path="/api/studies/1?_method=DELETE"
    ),
    "origin of another": _post(_JSON, _LENGTH, "Origin: http://evil.example", body=_SPACE),
    "origin in capitals": _post(_JSON, _LENGTH, "ORIGIN: NULL", body=_SPACE),
    "site of another": _post(_JSON, _LENGTH, "Sec-Fetch-Site: cross-site", body=_SPACE),
    "form of another": _post("Content-Type: text/plain;application/json", _LENGTH, body=_SPACE),
    "no kind": _post(_LENGTH, body=_SPACE),
    "rebound post": _post(_JSON, _LENGTH, body=_SPACE, host="Host: evil.example:8321"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_http_is_refused_and_the_server_goes_on(served: Site, filled: str, name: str) -> None:
    before = digest(filled)
    answer = _exchange(served.port, BROKEN[name])
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:300]
    assert b"Traceback" not in answer
    assert digest(filled) == before
    assert served.ask("/healthz").status == 200


def _exchange(port: int, request: bytes) -> bytes:
    """What is answered before the connection ends or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while piece := connection.recv(65_536):
                answer += piece
        except (TimeoutError, ConnectionError):  # a refused request need not be read to its end
            pass
        return answer


_DEEP = 100_000
NESTED = {
    "lists": '{"space": ' + "[" * _DEEP + "]" * _DEEP + "}",
    "mappings": '{"space": ' + '{"a":' * _DEEP + "1" + "}" * _DEEP + "}",
    "never closed": "[" * _DEEP,
    "beside the space": '{"space": "x", "more": ' + "[" * 500 + "]" * 500 + "}",
    "a huge number": '{"space": ' + "9" * 10_000 + "}",
    "a huge exponent": '{"space": 1e99999}',
    "half a character": '{"space": "\\ud800"}',
    "half a character in the label": '{"space": "x", "submitted_by": "\\udfff"}',
    "NUL": '{"space": "version: 1\\u0000"}',
    "many keys": "{" + ", ".join(f'"{number}": 0' for number in range(40_000)) + "}",
    "one key many times": "{" + ", ".join(['"space": "x"'] * 40_000) + "}",
    "deep YAML": json.dumps({"space": "a: " + "[" * 5_000 + "]" * 5_000}),
    "deep block YAML": json.dumps({"space": "\n".join(" " * depth + "a:" for depth in range(600))}),
    "wide YAML": json.dumps({"space": "a: [" + "1," * 60_000 + "1]"}),
    "alias bomb": json.dumps({"space": "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n"}),
    "tag": json.dumps({"space": "study: !!python/object/apply:os.system ['id']"}),
    "too large": json.dumps({"space": "x" * 300_000}),
}


@pytest.mark.parametrize("name", NESTED)
def test_json_and_yaml_that_nest_or_swell_are_one_line(served: Site, filled: str, name: str) -> None:
    before = digest(filled)
    answer = served.ask(SUBMIT, "POST", NESTED[name].encode(), Content_Type="application/json", Authorization=BEARER)
    assert answer.status in (400, 422), answer.text[:300]
    assert set(answer.json) == {"error"}
    assert "Traceback" not in answer.text
    assert len(answer.text) < 20_000
    assert digest(filled) == before


BEARER = f"Bearer {TOKEN}"
_UP = (
    *("../", "..%2f", "..%2F", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..\\", "..%5c", "%c0%ae%c0%ae/", "....//"),
    *("%00/../", "..;/", "..%00/", "%u002e%u002e/", "%e0%80%ae%e0%80%ae/", ".%2e/", "..//", "..%09/", "/./../"),
)
_BELOW = ("/assets/", "/static/", "/studies/topics/", "/studies/topics/report/", "/dashboard/", "/api/v1/studies/", "/")
_TARGETS = ("etc/passwd", "canary.txt")
PATHS = tuple(f"{root}{up * 8}{target}" for root, up, target in itertools.product(_BELOW, _UP, _TARGETS))


def test_no_path_of_many_leads_out(served: Site, filled: str) -> None:
    (Path(filled.removeprefix("sqlite:///")).parent / "canary.txt").write_text("the canary")
    assert len(PATHS) >= 200
    for path in (*PATHS, "/etc/passwd", "//etc/passwd", "/file:///etc/passwd", "/assets/" + quote("/etc/passwd", "")):
        answer = served.ask(path)
        assert "root:" not in answer.text, path
        assert "the canary" not in answer.text, path
        assert answer.status in (400, 404) or path.startswith("/dashboard/"), path  # Optuna's shell is at all of these


_ELSEWHERE = (
    *("http://169.254.169.254/latest/meta-data", "https://evil.example/x.jsonl", "ftp://evil.example/x.csv"),
    *("file:///etc/passwd", "//evil.example/share/x.jsonl", "s3://bucket/x.jsonl", "gs://bucket/x", "hdfs://h/x"),
    *(
        "\\\\evil.example\\share\\x.jsonl",
        "data:text/plain,x",
        "jar:file:///x!/y",
        "zip://x::http://evil.example/x.zip",
    ),
)
# Audit events tell of every attempt to reach another machine, whichever library makes it.
_WITHOUT_A_WAY_OUT = """
import sys
tried = []
sys.addaudithook(lambda event, given: event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
                 and tried.append((event, given[-1])))
import json
from pathlib import Path
from automl.errors import AutomlError
from automl.space.load import parse_space
from automl.setup.prepare import prepare
answers = []
for text in json.loads(sys.stdin.read()):
    try:
        prepare(parse_space(text, "space.yaml", Path(sys.argv[1])), Path(sys.argv[1]) / "cache")
        answers.append("accepted")
    except AutomlError as error:
        answers.append(str(error))
print(json.dumps([answers, tried], default=str))
"""


def test_an_address_in_a_space_file_is_not_fetched(tmp_path: Path) -> None:
    spaces = [
        json.dumps(
            {
                "version": 1,
                "study": "reaching-out",
                "model": model,
                "task": {"type": "classification", "data": data, "metric": "accuracy"},
                "search": {"trials": 1, "steps": 1},
            }
        )
        for place in _ELSEWHERE
        for model, data in (("./model", place), (place, "./data.jsonl"), ({"hub": place}, "./data.jsonl"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_A_WAY_OUT, str(tmp_path)],
        input=json.dumps(spaces),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    answers, tried = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(spaces)
    assert [text for text in answers if text == "accepted"] == []
    assert tried == []
