"""Telling people and programs how a night went: webhook, mail or command. A failing notifier never fails the night.

A target names where to tell; what is secret about it is read, when it is used, from a file or the environment, so that
nothing secret is in SQL, in a log or among a process's arguments:

- `webhook:https://host/path` posts JSON. `webhook:@FILE` and `webhook:$NAME` read the URL, for services whose URL is
  the secret. With AUTOML_WEBHOOK_SECRET or AUTOML_WEBHOOK_SECRET_FILE the header `X-Automl-Signature: sha256=...` is
  the HMAC of the body.
- `mail:someone@example.org` sends a plain text by SMTP: AUTOML_SMTP_HOST, _PORT (587), _SECURITY (starttls, tls or
  none), _USER, _PASSWORD or _PASSWORD_FILE, _FROM.
- `command:NAME` runs the file NAME of the folder that AUTOML_COMMANDS names (~/.config/automl/commands), without a
  shell, with the JSON on standard input. What is run is a file of the host, never a line of the database.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import smtplib
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from automl.errors import ConfigError, Problem

logger = logging.getLogger(__name__)

_SECONDS = 10.0
_COMMAND_SECONDS = 60.0
COMMANDS_VARIABLE = "AUTOML_COMMANDS"
_COMMANDS = "~/.config/automl/commands"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER")
_SYNTAX = "write webhook:https://…, webhook:@FILE, webhook:$NAME, mail:someone@host or command:NAME"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to tell. problem: what is wrong with it, empty if nothing is."""

    kind: str
    where: str
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """subject: one line. text: some lines for a person. detail: the same for a program, JSON."""

    subject: str
    text: str
    detail: Mapping[str, Any]


def parse_target(text: str) -> Target:
    """Read a target as it is written on the command line; whatever is wrong is in its `problem`."""
    kind, separator, where = text.partition(":")
    if not separator or kind not in _SENDERS or not where.strip():
        return Target(kind, where, f"{text!r} is no target; {_SYNTAX}")
    return Target(kind, where.strip(), _CHECKS[kind](where.strip()))


def send(target: Target, message: Notification, environment: Mapping[str, str] = os.environ) -> str | None:
    """Tell one target; None if that went well, else one line about what did not. Never raises, names no secret."""
    try:
        if target.problem:
            return target.problem
        _SENDERS[target.kind](target.where, message, environment)
    except ConfigError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - the edge: http and email raise anything over an odd answer or address
        return f"{target.kind}: {_harmless(error)}"
    return None


def _harmless(error: Exception) -> str:
    """What may be said of an error: texts of these exceptions can hold the URL or an answer of the server."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"cannot be reached: {type(error.reason).__name__}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"did not end within {_COMMAND_SECONDS:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        return f"ended with exit code {error.returncode}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the mail server answered {error.smtp_code}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _webhook_problem(where: str) -> str:
    if where.startswith(("@", "$")):
        return "" if len(where) > 1 else f"{where!r} names no file or variable"
    return _url_problem(where, shown=repr(where)) or _open_secret_problem(where)


def _url_problem(url: str, shown: str) -> str:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_good = False
    return "" if is_good else f"{shown} is not an http or https URL"


def _open_secret_problem(url: str) -> str:
    parts = urlsplit(url)
    if parts.password or parts.username or parts.query:
        return "a webhook's user, password or query is a secret; put the URL into a file and write webhook:@FILE"
    return ""


def _mail_problem(where: str) -> str:
    is_good = where.count("@") == 1 and not any(character.isspace() or character in ",;<>" for character in where)
    return "" if is_good else f"{where!r} is not a mail address"


def _command_problem(where: str) -> str:
    if _FILE_NAME.fullmatch(where):
        return ""
    return (
        f"{where!r} is not the name of a file; put what is to be run into a file of the folder that {COMMANDS_VARIABLE}"
        f" names ({_COMMANDS}), and write command:NAME"
    )


def _send_webhook(where: str, message: Notification, environment: Mapping[str, str]) -> None:
    url = _webhook_url(where, environment)
    body = json.dumps(message.detail, allow_nan=False, default=str).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "automl"}
    secret = _secret("AUTOML_WEBHOOK_SECRET", environment)
    if secret:
        headers["X-Automl-Signature"] = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 - checked: http(s)
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(request, timeout=_SECONDS) as answer:
        answer.read(1024)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A signed message goes where it was sent to, nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _webhook_url(where: str, environment: Mapping[str, str]) -> str:
    if where.startswith("@"):
        url = _first_line(Path(where[1:]))
    elif where.startswith("$"):
        url = environment.get(where[1:], "")
        if not url:
            raise _refused(f"webhook: the environment variable {where[1:]} is not set")
    else:
        return where
    if problem := _url_problem(url, shown=f"what {where} holds"):
        raise _refused(f"webhook: {problem}")
    return url


def _send_mail(where: str, message: Notification, environment: Mapping[str, str]) -> None:
    host = environment.get("AUTOML_SMTP_HOST", "")
    if not host:
        raise _refused("mail: the environment variable AUTOML_SMTP_HOST is not set")
    mail = EmailMessage()
    mail["Subject"], mail["To"] = message.subject, where
    mail["From"] = environment.get("AUTOML_SMTP_FROM") or f"automl@{host}"
    mail.set_content(message.text)
    security = environment.get("AUTOML_SMTP_SECURITY", "starttls")
    port = int(environment.get("AUTOML_SMTP_PORT", "587"))
    user, password = environment.get("AUTOML_SMTP_USER", ""), _secret("AUTOML_SMTP_PASSWORD", environment)
    with _smtp(host, port, security) as server:
        if security == "starttls":
            server.starttls(context=ssl.create_default_context())
        if user:
            server.login(user, password or "")
        server.send_message(mail)


def _smtp(host: str, port: int, security: str) -> smtplib.SMTP:
    if security == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=_SECONDS, context=ssl.create_default_context())
    if security not in ("starttls", "none"):
        raise _refused(f"mail: AUTOML_SMTP_SECURITY is {security!r}; it may be starttls, tls or none")
    return smtplib.SMTP(host, port, timeout=_SECONDS)


def _run_command(where: str, message: Notification, environment: Mapping[str, str]) -> None:
    kept = {name: environment[name] for name in _INHERITED if name in environment}
    subprocess.run(  # noqa: S603 - a file that the operator of this machine has laid out; no shell
        [str(_command_file(where, environment))],
        input=json.dumps(message.detail, allow_nan=False, default=str).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=kept,
        timeout=_COMMAND_SECONDS,
        check=True,
    )


def _command_file(name: str, environment: Mapping[str, str]) -> Path:
    """The program of that name. Raises ConfigError unless this user or root alone can change it."""
    folder = Path(environment.get(COMMANDS_VARIABLE) or _COMMANDS).expanduser().absolute()
    for path in (folder, folder / name):
        try:
            state = path.stat()
        except OSError as error:
            raise _refused(f"command: {path}: {error.strerror}") from error
        if state.st_uid not in (0, os.getuid()) or state.st_mode & 0o022:
            raise _refused(f"command: {path}: others could change it; chown and chmod go-w")
    if not (folder / name).is_file() or not os.access(folder / name, os.X_OK):
        raise _refused(f"command: {folder / name}: is not a program; chmod +x")
    return folder / name


def _secret(name: str, environment: Mapping[str, str]) -> str | None:
    if value := environment.get(name):
        return value
    file = environment.get(f"{name}_FILE")
    return _first_line(Path(file)) if file else None


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise _refused(f"{path}: cannot be read: {error.strerror}") from error
    if not lines or not lines[0].strip():
        raise _refused(f"{path}: is empty")
    return lines[0].strip()


def _refused(message: str) -> ConfigError:
    return ConfigError([Problem("", 0, 0, "notify", message)])


_SENDERS: Mapping[str, Callable[[str, Notification, Mapping[str, str]], None]] = {
    "webhook": _send_webhook,
    "mail": _send_mail,
    "command": _run_command,
}
_CHECKS: Mapping[str, Callable[[str], str]] = {
    "webhook": _webhook_problem,
    "mail": _mail_problem,
    "command": _command_problem,
}
