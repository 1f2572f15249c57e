"""No secret of a database URL is ever shown."""

from __future__ import annotations

import pytest

from automl.storage.url import mask_url, parse_url, redact


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
