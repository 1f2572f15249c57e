"""No secret of a database URL is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.errors import StorageError
from automl.storage.url import PASSWORD_FILE_VARIABLE, mask_url, parse_url, redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:hunter2@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://user:a%40b%3Ac%2F@host/db", "postgresql://user:***@host/db"),
        ("postgresql://host/db?password=hunter2&sslmode=require", "postgresql://host/db?password=***&sslmode=require"),
        ("postgresql://host/db?sslpassword=hunter2", "postgresql://host/db?sslpassword=***"),
        ("postgresql://host/db?api_TOKEN=hunter2", "postgresql://host/db?api_TOKEN=***"),
        ("sqlite:///runs/a b%{x}.db", "sqlite:///runs/a b%{x}.db"),
        ("postgresql://user:hunter2@host:port/db", "postgresql://***@host:port/db"),
        ("nonsense://u:hunter2@", "nonsense://u:***@"),
        ("postgresql//user:hunter2@host/db", "postgresql//***@host/db"),
        ("user:hunter2@host/db", "***@host/db"),
        ("postgresql://host:port/db?password=hunter2", "postgresql://host:port/db?***"),
    ],
)
def test_masked_url(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_drivers_messages_lose_every_form_of_the_password() -> None:
    url = parse_url("postgresql://u:p%40ss%20word@h/d?sslpassword=sec%2Fret")
    message = "failed for 'p@ss word' or p%40ss%20word or p%40ss+word, sslpassword=sec/ret"
    assert redact(message, url) == "failed for '***' or *** or ***, sslpassword=***"


def test_a_missing_password_comes_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/word\n")
    named = {PASSWORD_FILE_VARIABLE: str(file)}
    assert parse_url("postgresql://u@h/d", named).password == "p@ss/word"
    assert mask_url(parse_url("postgresql://u@h/d", named)) == "postgresql+psycopg://u:***@h/d"
    assert parse_url("postgresql://u:own@h/d", named).password == "own"
    assert parse_url("postgresql://h/d", named).password is None
    assert parse_url("postgresql://u@h/d", {}).password is None
    assert parse_url("sqlite:///x.db", named).password is None


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot read"), ("\n", "is empty"), (b"\xff", "not UTF-8")])
def test_a_password_file_that_is_of_no_use(tmp_path: Path, content: str | bytes | None, reason: str) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StorageError, match=reason):
        parse_url("postgresql://u@h/d", {PASSWORD_FILE_VARIABLE: str(file)})
