"""Files and folders that are either wholly there and undamaged, or are recognised as not.

Slot files, adapters, converted models and summaries are written through this module.

A folder is written beside its place, sealed with `manifest.json` (sha256 of every file, written last), synced to the
disk and renamed. Directories are 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automl.errors import CheckpointError, ResourceError

MANIFEST = "manifest.json"
DRAFT = ".draft-"
"""Prefix of folders that are being written, or were when their writer died."""


@contextmanager
def sealed_folder(folder: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """A draft folder to fill; on leaving the block it is sealed and takes the place of `folder`, old contents gone.

    about: what the manifest says beside the hashes; JSON without NaN. If the block raises, nothing has changed.
    Raises ResourceError if the disk is full, read-only or broken.
    """
    with disk_errors_named(folder):
        make_folder(folder.parent)
        remove_drafts(folder.parent, folder.name)
        draft = _draft(folder)
        draft.mkdir(mode=0o700)
        try:
            yield draft
            _seal(draft, about)
            if folder.exists():
                _discard(folder)
            draft.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def disk_errors_named(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into a ResourceError that names the folder."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(f"{folder}: cannot write: {error.strerror or error}") from error


def verify_folder(folder: Path) -> dict[str, Any]:
    """Compare every file with the manifest; returns its `about`. Raises CheckpointError naming what is wrong."""
    document = _read_manifest(folder)
    files = document["files"]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    if present != set(files):
        odd = sorted(present.symmetric_difference(files))[0]
        raise CheckpointError(f"{folder}: {odd} is {'not in the manifest' if odd in present else 'missing'}")
    for name, entry in files.items():
        found = _sha256(folder / name)
        if found != entry["sha256"]:
            raise CheckpointError(f"{folder}: {name} is damaged: sha256 {found[:12]}, manifest {entry['sha256'][:12]}")
    about: dict[str, Any] = document["about"]
    return about


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Inside the block no other process is in one of this target, whose folder exists; a lock file stays beside it."""
    with (target.parent / f"{target.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_file(path: Path, data: bytes) -> None:
    """Create the file with mode 0600 and sync it; raises FileExistsError if it is there already."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write the file anew, whole or not at all; an older one is replaced."""
    draft = path.parent / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        write_file(draft, data)
        draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create the folder and its missing parents with mode 0700, each synced into its parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete the folder with everything in it, if it is there: renamed first, so half of it is never found."""
    if folder.exists():
        _discard(folder)
        sync(folder.parent)


def remove_drafts(folder: Path, name: str = "") -> None:
    """Delete what dead writers of `name` left in `folder`; without a name, of anything in it."""
    for draft in folder.glob(f"{DRAFT}{name}-*" if name else f"{DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)


def sync(path: Path) -> None:
    """Make a file's content durable, or the renames and deletions in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one JSON text of a document: sorted keys, no NaN. Raises ValueError on a number that is not finite."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _seal(draft: Path, about: Mapping[str, Any]) -> None:
    folders = sorted(path for path in draft.rglob("*") if path.is_dir())
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o600)
        sync(path)
    entries = {
        path.relative_to(draft).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in files
    }
    body = {"about": about, "files": entries, "format": 1}
    write_file(draft / MANIFEST, canonical({**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()}))
    for path in folders:
        path.chmod(0o700)
    for path in [*folders, draft]:
        sync(path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, proved undamaged by its own sha256 and by being written in the one way we write it."""
    try:
        raw = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {MANIFEST}; the folder was never finished") from None
    try:
        document: dict[str, Any] = json.loads(raw)
        body = {key: value for key, value in document.items() if key != "sha256"}
        intact = canonical(document) == raw and document["sha256"] == hashlib.sha256(canonical(body)).hexdigest()
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged")
    return document


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _discard(folder: Path) -> None:
    trash = _draft(folder)
    folder.rename(trash)
    shutil.rmtree(trash)


def _draft(folder: Path) -> Path:
    return folder.parent / f"{DRAFT}{folder.name}-{uuid.uuid4().hex}"
