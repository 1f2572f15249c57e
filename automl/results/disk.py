"""Room on the disk that holds a study's folder: required before a search starts, watched while it runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from automl.errors import ResourceError
from automl.trial_folders import slot_folder

LEAST_FREE_BYTES = 1 << 30
_SECONDS_BETWEEN_LOOKS = 5.0


def check_disk(folder: Path) -> None:
    """Raise ResourceError if the folder cannot be written or the disk is nearly full, before anything starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"run.output: {folder} cannot be written: {error.strerror}") from error
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise ResourceError(f"run.output: only {_mib(free)} free at {folder}; at least 1024 MiB are needed")


class DiskWatch:
    """Notices that the disk fills up while workers can still write what they have to.

    Low water is 1 GiB, or what it takes for every worker to write one more slot file, and one trial its adapter: a new
    file lies beside the two before it for a moment.
    """

    def __init__(self, folder: Path, *, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._workers = workers
        self._clock = clock
        self._due = clock()

    def shortage(self, live: Iterable[int]) -> str | None:
        """Why no trial should go on, in words; None while there is room, or if it was looked up seconds ago.

        live: trials that are being trained, whose slot files tell what one takes.
        """
        now = self._clock()
        if now < self._due:
            return None
        self._due = now + _SECONDS_BETWEEN_LOOKS
        largest = max((_size(slot_folder(self._folder, trial)) for trial in live), default=0)
        needed = max(LEAST_FREE_BYTES, (self._workers + 1) * largest)
        free = shutil.disk_usage(self._folder).free
        return None if free >= needed else f"only {_mib(free)} free at {self._folder}, of {_mib(needed)} needed"


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, some of which may be gone at any moment."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
