"""The study's folder: found where the study began, held against every other study, locked while it is driven.

`owner.json` in it says which study the files belong to, and which run of it wrote last; `.lock` is locked by the
process that drives it (docs/adr/0012-folder-identity.md). A folder without an owner, as older versions have left it,
is adopted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from automl import durable
from automl.errors import ConfigError, Problem, ResourceError, StorageError, StudyBusyError
from automl.results.disk import check_disk
from automl.results.folders import study_folder, within
from automl.results.recorded import recorded_folder, started_by
from automl.space.spec import SweepSpec
from automl.storage.base import ResultStore
from automl.storage.sql import Database, open_database
from automl.storage.sqlite_file import try_flock
from automl.storage.url import is_sqlite, mask_url, parse_url, sqlite_path
from automl.trial_folders import adapters_folder, slots_folder

logger = logging.getLogger(__name__)

OWNER = "owner.json"
LOCK = ".lock"
_LOCK_SECONDS = 2.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Which study a folder belongs to, where its database was, and who drove it last (`host:pid:random`)."""

    identity: str
    study: str
    database: str
    host: str
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The folder of a study, locked by this process. spec: the sweep's, with `run.output` where the folder is.

    inherited: the study the folder belonged to, if that is no more. forked: its last run is none of this database's.
    """

    spec: SweepSpec
    owner: Owner
    inherited: Owner | None
    forked: bool

    @property
    def folder(self) -> Path:
        """Absolute."""
        return study_folder(self.spec)

    def settle(self, run: int, store: ResultStore) -> None:
        """Make the folder this study's own, before run `run` begins; files that nothing here knows of are put away."""
        if run == 1 or self.forked:
            durable.remove_folder(slots_folder(self.folder))
        if self.forked:
            logger.warning(
                "%s: last written by a run that this database does not know (was it restored?);"
                " trials in progress begin again",
                self.folder,
            )
        if self.inherited is not None:
            self._put_away(self.inherited)
        self._bring_back()
        self._find_moved(store)
        durable.replace_file(self.folder / OWNER, durable.canonical(asdict(self.owner)))

    def _put_away(self, earlier: Owner) -> None:
        for name in ("slots", "verification"):
            durable.remove_folder(self.folder / name)
        kept = _kept(self.folder, earlier)
        if adapters_folder(self.folder).is_dir() and not kept.exists():
            (self.folder / "best").unlink(missing_ok=True)
            adapters_folder(self.folder).rename(kept)
            logger.warning("adapters of an earlier study %r are kept as %s", earlier.study, kept)

    def _bring_back(self) -> None:
        mine, adapters = _kept(self.folder, self.owner), adapters_folder(self.folder)
        if mine.is_dir() and not adapters.exists():
            mine.rename(adapters)

    def _find_moved(self, store: ResultStore) -> None:
        """Record where adapters lie now, if somebody has moved the folder."""
        for artifact in store.artifacts():
            here = adapters_folder(self.folder) / Path(artifact.path).name
            if here.is_dir() and not Path(artifact.path).exists():
                store.add_artifact(replace(artifact, path=str(here)))


@contextmanager
def open_home(database: Database, spec: SweepSpec, driver: str) -> Iterator[Home]:
    """Find, create and lock the folder of a study whose lease `driver` holds.

    The folder where the study began is followed, wherever the command is started now and whatever `run.output` says,
    unless it is gone or another study's. Raises ConfigError naming the other study if it is another's, StudyBusyError
    if another process drives in it, ResourceError if it cannot be written or the disk is nearly full.
    """
    search = _Search(database, spec, driver)
    folder = search.choose()
    check_disk(folder)
    mine = search.owner
    with _locked(folder, mine, may_pass=search.is_predecessor):
        before = read_owner(folder)  # again, now that nobody else writes it
        search.refuse(folder, before)
        yield Home(
            spec=within(spec, folder),
            owner=mine,
            inherited=before if before is not None and before.identity != mine.identity else None,
            forked=before is not None and before.identity == mine.identity and before.driver not in search.drivers,
        )


def read_owner(folder: Path) -> Owner | None:
    """Whose the folder is; None if nobody has said so. Raises ResourceError if that cannot be read."""
    path = folder / OWNER
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        message = f"{path}: does not say whose the folder is ({error}); delete the file if the folder is this study's"
        raise ResourceError(message) from None


class _Search:
    """Which folder is this study's, and who else may have a claim to it."""

    def __init__(self, database: Database, spec: SweepSpec, driver: str) -> None:
        store = database.store(spec.study)
        row = store.sweep()
        self._database = database
        self._spec = spec
        self._recorded = recorded_folder(store)
        self.drivers = started_by(store)
        self.owner = Owner(
            identity=row.identity or "",
            study=spec.study,
            database=mask_url(database.address),
            host=socket.gethostname(),
            driver=driver,
        )

    def choose(self) -> Path:
        """Raises ConfigError if every folder it could be is another study's."""
        written, recorded = study_folder(self._spec), self._recorded
        if recorded is None or recorded == written:
            self.refuse(written, read_owner(written))
            return written
        if not recorded.is_dir():
            self.refuse(written, read_owner(written))
            logger.warning("%s: the study's folder is gone; going on in %s", recorded, written)
            return written
        if (claim := self._claim(recorded, read_owner(recorded))) is not None:
            self.refuse(written, read_owner(written))
            logger.warning("%s; going on in %s", claim, written)
            return written
        logger.info("files go to %s, where the study began; run.output says %s", recorded, written)
        return recorded

    def refuse(self, folder: Path, owner: Owner | None) -> None:
        """Raise ConfigError if the folder is another study's."""
        if (claim := self._claim(folder, owner)) is not None:
            remedy = "choose another run.output, or another study name; or delete the folder if nobody needs it"
            raise ConfigError([Problem(self._spec.source, 0, 0, "run.output", f"{claim}; {remedy}")])

    def is_predecessor(self, holder: Owner) -> bool:
        """Whether a process that still has the lock has lost the lease of this very study, and so writes no more."""
        is_ours = holder.identity == self.owner.identity and holder.driver in self.drivers
        return is_ours and holder.driver != self.owner.driver and self._is_here(holder)

    def _claim(self, folder: Path, owner: Owner | None) -> str | None:
        """Why the folder is another's; None if it is this study's, or nobody's any more."""
        if owner is None:
            return None
        if owner.identity != self.owner.identity:
            gone = owner.host == self.owner.host and (self._was_removed(owner) or _is_missing(owner))
            return None if gone else f"{folder} holds study {owner.study!r} of {owner.database}"
        if self._is_here(owner) or _is_missing(owner):
            return None
        if owner.driver in self.drivers and not _holds(owner):
            return None  # another spelling of the database's address, or another machine's
        return f"{folder} is driven from {owner.database}, of which this database is a copy"

    def _was_removed(self, owner: Owner) -> bool:
        """Whether the other study was in this database, which has a newer one of that name now."""
        return owner.study == self.owner.study and self._is_here(owner)

    def _is_here(self, owner: Owner) -> bool:
        if owner.database == self.owner.database:
            return True
        ours, theirs = _file(self.owner), _file(owner)
        return ours is not None and theirs is not None and theirs.exists() and ours.samefile(theirs)


def _holds(owner: Owner) -> bool:
    """Whether another SQLite file of this machine holds the study, so that ours is a copy of it."""
    if owner.host != socket.gethostname() or _file(owner) is None:
        return False
    try:
        with open_database(owner.database, create=False, read_only=True) as other:
            return owner.identity in {row.identity for row in other.studies()}
    except StorageError:
        return True  # it cannot be told


def _is_missing(owner: Owner) -> bool:
    """Whether the owner's database was a SQLite file of this machine that is gone."""
    file = _file(owner)
    return owner.host == socket.gethostname() and file is not None and not file.exists()


def _file(owner: Owner) -> Path | None:
    url = parse_url(owner.database, {})
    return sqlite_path(url) if is_sqlite(url) else None


def _kept(folder: Path, owner: Owner) -> Path:
    return folder / f"adapters-{owner.identity[:8]}"


@contextmanager
def _locked(folder: Path, owner: Owner, *, may_pass: Callable[[Owner], bool]) -> Iterator[None]:
    """Hold the folder's lock; who holds it is written into it. It ends with the process, however that ends."""
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if _lock(file.fileno(), folder):
            file.truncate(0)
            file.write(json.dumps(asdict(owner)))
            file.flush()
        else:
            file.seek(0)
            holder = _parsed(file.read())
            if holder is None or not may_pass(holder):
                raise StudyBusyError(_busy(folder, holder))
            logger.warning("%s: %s has lost its lease, but not ended; going on", folder, _process(holder))
        yield


def _lock(descriptor: int, folder: Path) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    try:
        while not try_flock(descriptor):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: this file system knows no locks; see that no other database drives in it", folder)
    return True


def _parsed(text: str) -> Owner | None:
    with contextlib.suppress(ValueError, TypeError):
        return Owner(**json.loads(text))
    return None


def _busy(folder: Path, holder: Owner | None) -> str:
    who = "another process" if holder is None else f"{_process(holder)} (study {holder.study!r} of {holder.database})"
    return f"{folder} is being driven by {who}; choose another run.output, or wait for its end"


def _process(owner: Owner) -> str:
    host, pid, _ = owner.driver.rsplit(":", 2)
    return f"process {pid} on {host}"
