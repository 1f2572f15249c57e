"""A headless Chromium of this machine, and pages that remember what they complained about."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), "")
"""Its path, "" if none is installed."""

_PATIENCE = 240_000
"""Milliseconds that a browser is given for each thing."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=_PATIENCE)
        yield started
        started.close()


def watch(page: Any) -> tuple[Any, list[str]]:
    """The page, and what it will complain about: errors, dialogs, breaches of the policy."""
    said: list[str] = []
    page.set_default_timeout(_PATIENCE)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    return page, said
