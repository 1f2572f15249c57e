"""How a worker gets its host: which one, and model and data on machines that may lack them.

Each host is imported only where it is needed: PEFT alone takes seconds. Model and data are taken from where they lie,
from that machine's cache, or from a depot; all three are checked by content: a folder of the same name with something
else in it is not taken. The caches are those that a search on that machine would use, with entries named after their
content.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from automl.errors import AutomlError, ModelError, ResourceError
from automl.execution.base import Host, HostFactory
from automl.models.backbone import BackboneRef, model_files, reference
from automl.results.folders import cache_folder, proofs_folder
from automl.space.spec import RunSettings
from automl.storage.artifacts import files_below
from automl.storage.depot import Depot
from automl.tasks.base import Prepared
from automl.tasks.prepare import load_prepared
from automl.training.kept import Keep
from automl.training.runtime import HostSettings

if TYPE_CHECKING:
    from automl.packed.host import PackedHost
    from automl.training.host import SoloHost


def host_factory(settings: HostSettings, run: RunSettings, artifacts: str | None) -> HostFactory:
    """What builds a worker's host; workers of a cluster to join may be on machines that lack model and data.

    artifacts: URL from where they fetch them; they are put there, unless they are there.
    """
    if run.executor == "inline" or run.address is None:
        return partial(build_host, settings)
    if artifacts is not None:
        publish(settings, artifacts)
    return partial(build_host_anywhere, settings, artifacts)


def build_host(settings: HostSettings) -> PackedHost | SoloHost:
    """Load backbone and data and return the host the settings ask for; called inside the worker.

    A trial in several shards has a host in each process of a group, and this is called in all of them.
    """
    if settings.packed:
        from automl.packed.build import build_packed_host

        return build_packed_host(settings)
    if settings.shards > 1:
        from automl.training.sharded import build_sharded_host

        return build_sharded_host(settings)
    from automl.training.host import build_solo_host

    return build_solo_host(settings)


def build_host_anywhere(settings: HostSettings, artifacts: str | None) -> Host:
    """Build the host where model and data may be lacking: they are fetched from `artifacts`, a URL."""
    return build_host(at_hand(settings, artifacts, cache_folder()))


def publish(settings: HostSettings, artifacts: str) -> None:
    """Put the model and the data of these settings where workers can fetch them, unless they are there.

    The test rows stay with the driver unless trials are judged on them, and then lie apart from what a search fetches.
    artifacts: URL. Raises ResourceError if that place cannot be written.
    """
    depot = Depot(artifacts)
    backbone = settings.backbone
    files = model_files(Path(backbone.path))
    depot.put_folder(_model_name(backbone), {file.name: file for file in files})
    kept = [lane.keep.prepared for lane in settings.lanes if lane.keep is not None]
    for each in (*(lane.prepared for lane in settings.lanes), *kept):
        withheld = () if _has_test(each) else ("test/",)
        rows = files_below(each.path)
        depot.put_folder(_data_name(each), {name: file for name, file in rows.items() if not name.startswith(withheld)})


def at_hand(settings: HostSettings, artifacts: str | None, cache: Path) -> HostSettings:
    """The settings with model and data where this machine has them; what it lacks is fetched into `cache`.

    artifacts: URL where the driver has published them, if it has. Raises ResourceError naming this machine and what it
    lacks.
    """
    try:
        return replace(
            settings,
            backbone=_backbone_at_hand(settings.backbone, artifacts, cache),
            prepared=_prepared_at_hand(settings.prepared, artifacts, cache),
            keep=_keep_at_hand(settings.keep, artifacts, cache),
            beside=tuple(at_hand(each, artifacts, cache) for each in settings.beside),
            proofs=str(proofs_folder(cache)),
        )
    except AutomlError as error:
        raise ResourceError(f"node {socket.gethostname()}: {error}") from error


def _backbone_at_hand(wanted: BackboneRef, artifacts: str | None, cache: Path) -> BackboneRef:
    wanted = replace(wanted, cache=str(cache.absolute()) if wanted.cache else "")
    if _is_model(Path(wanted.path), wanted, cache):
        return wanted
    copy = cache.absolute() / _model_name(wanted)
    if not _is_model(copy, wanted, cache):
        _fetch(f"the model {wanted.path}", _model_name(wanted), copy, artifacts)
    return replace(wanted, copy=str(copy))


def _keep_at_hand(wanted: Keep | None, artifacts: str | None, cache: Path) -> Keep | None:
    if wanted is None:
        return None
    return replace(wanted, prepared=_prepared_at_hand(wanted.prepared, artifacts, cache))


def _prepared_at_hand(wanted: Prepared, artifacts: str | None, cache: Path) -> Prepared:
    if _is_prepared(wanted.path, wanted):
        return wanted
    copy = cache.absolute() / _data_name(wanted)
    if not _is_prepared(copy, wanted):
        _fetch(f"the prepared data {wanted.path}", _data_name(wanted), copy, artifacts)
    return replace(wanted, path=copy)


def _is_model(folder: Path, wanted: BackboneRef, cache: Path) -> bool:
    try:
        return folder.is_dir() and reference(folder, cache).fingerprint == wanted.fingerprint
    except ModelError:
        return False


def _is_prepared(folder: Path, wanted: Prepared) -> bool:
    found = load_prepared(folder)
    is_whole = (folder / "test").is_dir() or not _has_test(wanted)
    return found is not None and found.fingerprint == wanted.fingerprint and is_whole


def _has_test(prepared: Prepared) -> bool:
    return prepared.rows.get("test", 0) > 0


def _fetch(what: str, name: str, folder: Path, artifacts: str | None) -> None:
    if artifacts is None:
        raise ResourceError(
            f"{what} is not there, or is another; put it there under the same path, or set storage.artifacts,"
            " from where it is fetched"
        )
    Depot(artifacts).fetch_folder(name, folder)


def _model_name(backbone: BackboneRef) -> str:
    return f"models/{backbone.fingerprint}"


def _data_name(prepared: Prepared) -> str:
    """The published folder's name: not the one that data is prepared under, and another with the test rows."""
    return f"data/{prepared.fingerprint}.{'with' if _has_test(prepared) else 'without'}-test"
