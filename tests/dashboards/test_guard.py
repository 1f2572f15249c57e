"""Who is let in and what is refused: tokens, hosts, origins, sizes, paths, methods (R-24, R-25, R-27)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from automl.cli.main import main
from automl.errors import ConfigError
from automl.storage.sql import open_database
from dashboards.access import Token, read_token, sent_token
from dashboards.app import build_app
from dashboards.guard import Rules
from dashboards.serve import Address, rules_for
from tests.dashboards.serving import TOKEN, Site, site

READ = (
    *("/", "/live", "/studies/topics", "/studies/topics/live", "/studies/topics/trials", "/studies/topics/layers"),
    *("/compare?study=topics", "/schedules/nightly", "/doctor", "/dashboard", "/api/studies", "/assets/dashboard.js"),
    *("/api/v1/studies", "/api/v1/studies/topics", "/api/v1/studies/topics/trials", "/api/v1/schedules"),
    *("/api/v1/schedules/nightly/nights", "/api/v1/submissions", "/api/v1/doctor", "/api/v1/openapi.json"),
)
SUBMIT = "/api/v1/submissions"
BASIC = base64.b64encode(f"somebody:{TOKEN}".encode()).decode()


def digest(url: str) -> str:
    """Of everything in the database."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()


def test_every_answer_carries_the_headers(served: Site) -> None:
    for path in (*READ, "/nowhere", "/optuna", "/healthz", "/static/bundle.js", "/favicon.ico"):
        headers = served.ask(path).headers
        policy = headers["content-security-policy"]
        scripts = policy.partition("script-src")[2].partition(";")[0]
        assert "unsafe" not in scripts, path
        assert "frame-ancestors 'none'" in policy, path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["access-control-allow-origin"] is None, path
        assert headers["server"] is None, path


def test_own_pages_allow_no_inline_style_or_script_at_all(served: Site) -> None:
    assert "unsafe" not in served.ask("/").headers["content-security-policy"]


def test_elsewhere_everything_needs_the_token(filled: str) -> None:
    with site(filled, demands_token=True) as guarded:
        for path in READ:
            assert guarded.ask(path).status == 401, path
            assert guarded.ask(path, Authorization="Bearer wrong").status == 401, path
            assert guarded.ask(path, Authorization=f"Bearer {TOKEN}").status == 200, path
        assert guarded.ask("/", Authorization=f"Basic {BASIC}").status == 200
        assert guarded.ask("/").headers["www-authenticate"].startswith("Basic ")
        assert guarded.ask("/healthz").status == 200
        assert guarded.ask(f"/?token={TOKEN}").status == 401
        assert guarded.ask(SUBMIT, "POST", b"{}", Content_Type="application/json").status == 401


def test_here_reading_is_open_and_a_wrong_token_is_not(served: Site) -> None:
    for path in READ:
        assert served.ask(path).status == 200, path
        assert served.ask(path, Authorization="Bearer wrong").status == 401, path
    assert served.ask("/", Authorization="Digest x").status == 401


def test_a_browser_password_never_suffices_for_a_change(served: Site) -> None:
    assert served.post(SUBMIT, {"space": "x"}, Authorization=f"Basic {BASIC}").status == 401
    assert served.post(SUBMIT, {"space": "x"}, Authorization=None).status == 401


def test_without_a_token_nothing_can_be_submitted(filled: str) -> None:
    with site(filled, token=None) as reading:
        answer = reading.post(SUBMIT, {"space": "study: x"})
    assert (answer.status, "read-only" in answer.json["error"]) == (403, True)


HOSTILE_HEADERS: tuple[dict[str, str | None], ...] = (
    {"Host": "evil.example"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "localhost.evil.example:8321"},
    {"Host": "169.254.169.254"},
    {"Host": ""},
    {"Host": None},
    {"Host": "evil.example", "X_Forwarded_Host": "127.0.0.1"},
    {"Host": "evil.example#127.0.0.1"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Content_Type": "text/plain"},
    {"Content_Type": "application/x-www-form-urlencoded"},
    {"Content_Type": "multipart/form-data; boundary=x"},
    {"Content_Type": "application/jsonp"},
    {"Content_Type": None},
    {"Content_Length": "2000000"},
    {"Content_Length": "-1"},
    {"Content_Length": "1e9"},
)


@pytest.mark.parametrize("headers", HOSTILE_HEADERS, ids=lambda given: "-".join(map(str, next(iter(given.items())))))
def test_hostile_headers_are_refused_even_with_the_token(
    served: Site, filled: str, headers: dict[str, str | None]
) -> None:
    before = digest(filled)
    answer = served.post(SUBMIT, {"space": "study: x"}, **headers)
    assert answer.status in (400, 403, 413, 415, 421)
    assert digest(filled) == before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GETT"])
@pytest.mark.parametrize("path", ["/", SUBMIT, "/api/studies/1", "/api/studies/1/note"])
def test_other_methods_are_refused(served: Site, method: str, path: str) -> None:
    assert served.ask(path, method, Authorization=f"Bearer {TOKEN}").status in (400, 405)


@pytest.mark.parametrize(
    "path", ["/", "/studies/topics", "/api/studies", "/api/studies/1/rename", "/api/trials/1/tell"]
)
def test_posts_are_refused_but_where_the_api_takes_them(served: Site, filled: str, path: str) -> None:
    before = digest(filled)
    assert served.post(path, {"study_name": "new", "directions": [1]}).status in (404, 405)
    assert served.ask(path, "GET", X_HTTP_Method_Override="DELETE").status in (200, 404)
    assert digest(filled) == before


def test_a_body_without_a_length_is_cut_off(served: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=240)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    pieces = (b"x" * 100_000 for _ in range(15))
    with contextlib.suppress(ConnectionError):  # the answer comes, and then the end, before all is sent
        connection.request("POST", SUBMIT, body=pieces, headers=headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


_UP = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..\\", "..%5c", "%c0%ae%c0%ae/", "....//", "%00/../")
TRAVERSALS = tuple(
    f"{root}{up * 6}{target}"
    for root in ("/assets/", "/static/", "/studies/topics/", "/dashboard/", "/")
    for up in _UP
    for target in ("etc/passwd", "canary.txt")
)


def test_no_path_leads_out(served: Site, filled: str) -> None:
    (Path(filled.removeprefix("sqlite:///")).parent / "canary.txt").write_text("the canary")
    for path in (*TRAVERSALS, "//etc/passwd", "/assets//etc/passwd", "/assets/" + "a" * 5000, "/%00", "/%0d%0aX:%20y"):
        answer = served.ask(path)
        assert "root:" not in answer.text, path
        assert "the canary" not in answer.text, path
        assert answer.status < 500, path


def test_errors_are_one_line_without_a_traceback(served: Site) -> None:
    for path, status in (
        ("/nowhere", 404),
        ("/studies/absent", 404),
        ("/schedules/absent", 404),
        ("/compare?study=absent", 404),
        ("/studies/topics/trials?order=x", 422),
        ("/studies/topics/trials?page=0x1", 422),
        ("/api/v1/studies/absent", 404),
        ("/api/v1/studies/topics/trials?limit=100000", 422),
        (f"{SUBMIT}/{'0' * 32}", 404),
        (f"{SUBMIT}/../../x", 404),
    ):
        answer = served.ask(path)
        assert answer.status == status, path
        assert "Traceback" not in answer.text
        assert "File " not in answer.text


def test_beyond_this_machine_a_token_is_demanded() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "machine.example"):
        with pytest.raises(ConfigError, match="others can connect"):
            rules_for(Address(host=host), None, {})
        rules = rules_for(Address(host=host), None, {"AUTOML_DASHBOARD_TOKEN": TOKEN})
        assert rules.demands_token
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert not rules_for(Address(host=host), None, {}).demands_token


def test_the_command_ends_with_code_2_without_a_token(
    filled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AUTOML_DASHBOARD_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["dashboard", "--host", "0.0.0.0", "--port", "0", "--db", filled])
    assert ended.value.code == 2
    assert "others can connect to 0.0.0.0" in capsys.readouterr().err


def test_no_artifact_is_served(served: Site) -> None:
    for path in ("/artifacts/1/0/x", "/api/artifacts/1/x", "/api/studies/1/artifacts", "/csv/1", "/api/artifacts/1/0"):
        assert served.ask(path).status == 404, path
        assert served.post(path, {}).status in (404, 405), path


def test_a_writable_database_is_not_served_without_a_token(filled: str) -> None:
    rules = Rules(hosts=frozenset({"localhost"}))
    with open_database(filled, create=False) as database, pytest.raises(ValueError, match="only read"):
        build_app(database, rules)


def test_a_token_file_is_made_private_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    token = read_token(file)
    assert token is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text().strip()
    assert len(text) >= 43  # 32 random bytes
    assert token.matches(text)
    assert not token.matches(text[:-1])
    assert text not in repr(token)


def test_a_token_that_others_can_read_or_guess_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    os.chmod(file, 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(file)
    with pytest.raises(ConfigError, match="32 or more"):
        Token("short", "$X")
    with pytest.raises(ConfigError, match="cannot use"):
        read_token(tmp_path)


def test_what_is_sent_is_read_leniently_but_compared_exactly() -> None:
    assert sent_token(f"bearer {TOKEN}", password=False) == TOKEN
    assert sent_token(f"Basic {BASIC}", password=True) == TOKEN
    assert sent_token(f"Basic {BASIC}", password=False) is None
    assert sent_token("Basic !!", password=True) is None
    assert sent_token("", password=True) is None
