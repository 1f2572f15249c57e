"""Database URLs: which databases are supported, and how a URL is shown without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from automl.errors import StorageError

_SECRET_KEY = re.compile(r"pass|secret|token|key|credential", re.IGNORECASE)
_HIDDEN = "***"

PASSWORD_FILE_VARIABLE = "AUTOML_DB_PASSWORD_FILE"  # noqa: S105 - the name of a variable


def parse_url(text: str, environment: Mapping[str, str] = os.environ) -> URL:
    """The URL with an explicit driver (and an absolute path for SQLite).

    Supported: `sqlite:///relative.db`, `sqlite:////absolute.db` and `postgresql://user:password@host/database`. A
    PostgreSQL URL that names a user but no password gets that of the file that AUTOML_DB_PASSWORD_FILE names.
    Raises StorageError for anything else and for a file that cannot be read; the message never contains a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # whose message holds the URL
        raise StorageError(f"{mask_url(text)!r} is not a database URL; use sqlite:///FILE or postgresql://…") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_url(url)
    if backend in ("postgresql", "postgres"):
        return _with_password(url.set(drivername="postgresql+psycopg"), environment)
    raise StorageError(f"database {backend!r} is not supported; use sqlite:///FILE or postgresql://…")


def absolute_url(text: str) -> str:
    """The URL with its secrets, for the environment of a process that runs elsewhere: a SQLite path made absolute."""
    return parse_url(text).render_as_string(hide_password=False)


def is_sqlite(url: URL) -> bool:
    """Whether the database is a local SQLite file."""
    return url.get_backend_name() == "sqlite"


def sqlite_path(url: URL) -> Path:
    """The file of a URL that `parse_url` has returned."""
    return Path(url.database or "")


def mask_url(url: str | URL) -> str:
    """The URL as it may be shown: password, and query values whose key sounds secret, replaced by `***`."""
    if isinstance(url, str):
        try:
            return mask_url(make_url(url))
        except (ArgumentError, ValueError):
            without_user = re.sub(r"^(.*?//)?.*(?=@)", rf"\1{_HIDDEN}", url)
            return re.sub(r"(?<=[?&]).*", _HIDDEN, without_user)
    if is_sqlite(url) and not url.query:
        return f"sqlite:///{url.database or ''}"
    query = {key: _HIDDEN if _SECRET_KEY.search(key) else value for key, value in url.query.items()}
    shown = url.set(query=query).render_as_string(hide_password=True)
    return shown.replace(quote(_HIDDEN), _HIDDEN).replace(quote_plus(_HIDDEN), _HIDDEN)


def redact(text: str, url: URL) -> str:
    """The text without any secret of the URL, plain or percent-encoded; for messages of database drivers."""
    for secret in _secrets(url):
        for form in {secret, quote(secret, safe=""), quote_plus(secret)}:
            text = text.replace(form, _HIDDEN)
    return text


def _sqlite_url(url: URL) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StorageError(f"{mask_url(url)!r}: a study needs a database file, as in sqlite:///automl.db")
    return url.set(drivername="sqlite", database=str(Path(url.database).absolute()), query={})


def _with_password(url: URL, environment: Mapping[str, str]) -> URL:
    path = environment.get(PASSWORD_FILE_VARIABLE)
    if not path or not url.username or url.password is not None or "password" in url.query:
        return url
    try:
        password = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise StorageError(f"{PASSWORD_FILE_VARIABLE}: cannot read {path}: {reason}") from None
    if not password:
        raise StorageError(f"{PASSWORD_FILE_VARIABLE}: {path} is empty; write the password of {url.username} into it")
    return url.set(password=password)


def _secrets(url: URL) -> set[str]:
    found = {str(url.password)} if url.password else set()
    for key, value in url.query.items():
        if _SECRET_KEY.search(key):
            found.update((value,) if isinstance(value, str) else value)
    return {secret for secret in found if secret}
