"""Digests of what a sweep leaves on disk, so that a database row can vouch for a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_CHUNK = 1 << 20


class Digest(NamedTuple):
    """SHA-256 in hexadecimal, and the number of bytes it covers."""

    sha256: str
    bytes: int


def digest_folder(path: str | Path) -> Digest:
    """Digest of all files below a folder, by their relative paths, sizes and contents, in the order of the paths.

    Equal folders have equal digests wherever they lie; a renamed, added, lost or changed file changes it. Empty
    folders do not count. Raises FileNotFoundError if there is no such folder.
    """
    return digest_files(files_below(path))


def files_below(path: str | Path) -> dict[str, Path]:
    """All files below a folder by their relative paths. Raises FileNotFoundError if there is no such folder."""
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()}


def digest_files(files: Mapping[str, Path]) -> Digest:
    """What `digest_folder` says of a folder that holds these files under these relative paths."""
    digest, total = hashlib.sha256(), 0
    for name, file in sorted(files.items()):
        content, size = _digest_file(file)
        digest.update(f"{name}\0{size}\0{content}\n".encode())
        total += size
    return Digest(digest.hexdigest(), total)


def _digest_file(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
