"""Content digests of model files, remembered beside the cache so that a large file is read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from automl import durable


def file_digest(file: Path, cache: Path) -> str:
    """sha256 (hex) of a file's content.

    Remembered in `cache/digests` by real path, modification time (ns) and size, so a 14 GB model is read once; a file
    replaced by another of the same size and time would be missed. Safe with any number of processes.
    """
    real = file.resolve()
    state = real.stat()
    key = hashlib.sha256(f"{real}\0{state.st_mtime_ns}\0{state.st_size}".encode()).hexdigest()
    remembered = cache / "digests" / key
    if remembered.is_file():
        return remembered.read_text(encoding="ascii")
    with real.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    durable.make_folder(remembered.parent)
    durable.replace_file(remembered, digest.encode("ascii"))
    return digest


def combined_digest(digests: Mapping[str, str]) -> str:
    """sha256 (hex) over names and digests of files, in the order of their names."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
