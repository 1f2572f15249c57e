"""A host that waits for the other worker; what it trains by is `automl.testing.formula`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from automl.testing.formula import FormulaHost


class MeetingHost(FormulaHost):
    """The host of one of two workers that begins when both are there: else a slow one may find everything trained."""

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(folder, **options)
        met = Path(folder).parent / "met"
        met.mkdir(exist_ok=True)
        (met / str(os.getpid())).touch()
        until = time.monotonic() + 240
        while len(list(met.iterdir())) < 2:
            assert time.monotonic() < until, "the other worker did not come"
            time.sleep(0.05)
