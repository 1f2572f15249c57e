"""A place beside the study's folder for what others shall find: a URL that fsspec knows, such as s3://bucket/prefix.

A folder in it is an index `NAME.json` (its files, and their digest) and the files below `NAME/`. The index is written
last, so a folder that was never finished is not found, and what is read is compared with it. Credentials come from
where the file system looks for them (environment, configuration, role of the machine), never from the URL.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from automl import durable
from automl.errors import AutomlError, CheckpointError, MissingExtraError, ResourceError
from automl.storage.artifacts import Digest, digest_files, digest_folder

_EXTRAS = {"s3": "s3"}


class Depot:
    """Folders and files by name below a URL; nothing in it is ever deleted by us.

    Raises MissingExtraError if the package for this kind of URL is not installed, ResourceError if the place cannot be
    reached, read or written.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        try:
            self._fs, root = fsspec.url_to_fs(self.url)
        except ImportError as error:
            extra = f"pip install 'automl-lora[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
            raise MissingExtraError(f"storage.artifacts: {scheme}:// needs another package: {extra}") from error
        self._root = str(root).rstrip("/")
        self._is_local = scheme == "file"

    def check(self) -> None:
        """See that it can be written, by a file that is removed again."""
        name = f".probe-{uuid.uuid4().hex}"
        with self._errors_named("write"):
            self._write(name, b"")
            self._fs.rm_file(self._key(name))

    def put_folder(self, name: str, files: Mapping[str, Path]) -> Digest:
        """Store a folder of these files (by relative path), unless it is there already; returns the digest of it.

        The name must follow from the content: a folder of that name with files of these names and sizes is not read, or
        a model of 140 GB would be at each start.
        """
        size = sum(file.stat().st_size for file in files.values())
        with self._errors_named(f"read {name}"):
            stored = self._read_index(name)
        if stored is not None and (stored.get("files"), stored.get("bytes")) == (sorted(files), size):
            return Digest(stored["sha256"], size)
        digest = digest_files(files)
        index = {"files": sorted(files), "sha256": digest.sha256, "bytes": digest.bytes, "format": 1}
        with self._errors_named(f"write {name}"):
            for relative, file in files.items():
                self._upload(file, f"{name}/{relative}")
            self._write(f"{name}.json", durable.canonical(index))
        return digest

    def put_file(self, name: str, file: Path) -> None:
        """Store one file, in the place of an older one."""
        with self._errors_named(f"write {name}"):
            self._upload(file, name)

    def has_folder(self, name: str) -> bool:
        """Whether a finished folder of that name is there."""
        with self._errors_named(f"read {name}"):
            return self._read_index(name) is not None

    def fetch_folder(self, name: str, folder: Path, *, sha256: str | None = None) -> None:
        """Make `folder` a copy of a stored one; of several processes that fetch it, the first to finish wins.

        sha256: the digest it must have beside the one in its index. Raises CheckpointError if it has another.
        """
        durable.make_folder(folder.parent)
        draft = folder.parent / f"{durable.DRAFT}{folder.name}-{uuid.uuid4().hex}"
        try:
            with self._errors_named(f"read {name}"):
                index = self._read_index(name)
                if index is None:
                    raise ResourceError(f"{self.url}: there is no finished {name}")
                draft.mkdir(mode=0o700)
                for relative in index["files"]:
                    file = draft / _inside(relative, name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(self._key(f"{name}/{relative}"), str(file))
            found = digest_folder(draft).sha256
            if found != index["sha256"] or sha256 not in (None, found):
                wanted = sha256 or index["sha256"]
                raise CheckpointError(f"{self.url}/{name} is damaged: sha256 {found[:12]}, should be {wanted[:12]}")
            try:
                draft.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _read_index(self, name: str) -> Any:
        try:
            return json.loads(self._fs.cat_file(self._key(f"{name}.json")))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointError(f"{self.url}/{name}.json is damaged") from error

    def _upload(self, source: Path, name: str) -> None:
        """An object store shows an object whole or not at all; on a disk that takes a draft and a rename."""
        if not self._is_local:
            self._fs.put_file(str(source), self._key(name))
            return
        target = Path(self._key(name))
        durable.make_folder(target.parent)
        draft = target.parent / f"{durable.DRAFT}{uuid.uuid4().hex}"
        try:
            shutil.copyfile(source, draft)
            durable.sync(draft)
            draft.replace(target)
            durable.sync(target.parent)
        finally:
            draft.unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        if self._is_local:
            target = Path(self._key(name))
            durable.make_folder(target.parent)
            durable.replace_file(target, data)
        else:
            self._fs.pipe_file(self._key(name), data)

    @contextmanager
    def _errors_named(self, doing: str) -> Iterator[None]:
        try:
            yield
        except AutomlError:
            raise
        except Exception as error:  # every file system has errors of its own
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            text = f"storage.artifacts: {self.url}: cannot {doing}: {type(error).__name__}: {reason}"
            raise ResourceError(text) from error


def _inside(relative: str, name: str) -> PurePosixPath:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(f"{name}: its index names a file outside of it: {relative!r}")
    return path
