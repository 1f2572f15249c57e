"""The token that lets somebody in: where it comes from, and how what was sent is compared with it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from automl.errors import ConfigError, Problem

VARIABLE = "AUTOML_DASHBOARD_TOKEN"
_SHORTEST = 32
_CONTAINER_SECRETS = Path("/run/secrets")  # mounted by the container's runtime, which sets their mode


class Token:
    """A secret that can be compared with what was sent, and neither shown nor read back."""

    def __init__(self, text: str, source: str) -> None:
        """Raises ConfigError for less than 32 characters; source: what the message names."""
        if len(text) < _SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
            message = f"a token is {_SHORTEST} or more printable ASCII characters without spaces"
            raise ConfigError([Problem("", 0, 0, source, f"{message}; this has {len(text)}")])
        self._digest = _digest(text)

    def __repr__(self) -> str:
        return "Token(***)"

    def matches(self, sent: str) -> bool:
        """Whether this is the token, in a time that does not depend on how much of it is right."""
        return hmac.compare_digest(_digest(sent), self._digest)


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> Token | None:
    """The token of the file, else of $AUTOML_DASHBOARD_TOKEN, else None. A file that is not there yet is made.

    Raises ConfigError if the file can be read by other users, cannot be read by this one, or holds no token.
    """
    if file is None:
        text = environment.get(VARIABLE, "")
        return Token(text, f"${VARIABLE}") if text else None
    try:
        if not file.exists():
            _write(file)
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _problem(f"cannot use {file}: {error}") from None
    if stat.S_IMODE(mode) & 0o077 and _CONTAINER_SECRETS not in file.absolute().parents:
        raise _problem(f"{file} can be read by other users; make it private: chmod 600 {file}")
    return Token(text, f"--token-file {file}")


def sent_token(authorization: str, *, password: bool) -> str | None:
    """The token in an Authorization header: Bearer, and with `password` also Basic, whose password it then is."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic" and password:
        try:
            return base64.b64decode(rest, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _write(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(secrets.token_urlsafe(_SHORTEST) + "\n")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _problem(message: str) -> ConfigError:
    return ConfigError([Problem("", 0, 0, "--token-file", message)])
