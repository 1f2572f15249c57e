"""Quantised weights as they were made the first time: on a CPU bitsandbytes takes minutes for what is read in seconds.

A copy holds what came from the checkpoint, as bitsandbytes holds it: loading it gives the same bits as quantising anew.
It lies in the cache, named after the contents of the model and everything else that its bits depend on.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from automl import durable
from automl.errors import CheckpointError, ResourceError

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"

Loaded = tuple[Any, Mapping[str, Any]]
"""A model, and what transformers tells of how it was loaded."""


def copy_folder(cache: Path, about: Mapping[str, Any], beside: Sequence[Path]) -> Path:
    """Where the copy of a model lies. about: what it is and how it is held, as JSON; versions count too.

    beside: files that belong to it as they are.
    """
    versions = {name: version(name) for name in ("bitsandbytes", "torch", "transformers")}
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in beside}
    whole = {**about, "versions": versions, "files": files}
    return cache / "models" / f"quantised-{hashlib.sha256(durable.canonical(whole)).hexdigest()}"


def read_or_make(
    folder: Path, beside: Sequence[Path], *, read: Callable[[], Loaded], make: Callable[[], Loaded]
) -> Loaded:
    """The model from its copy by `read`; if there is none or it is damaged by `make`, and the copy is written.

    beside: as for `copy_folder`. Of several processes one makes it and the others wait. What the disk refuses leaves
    the model without a copy.
    """
    try:
        with durable.disk_errors_named(folder):
            durable.make_folder(folder.parent)
            with durable.locked(folder):
                if not _is_whole(folder):
                    return _written(folder, beside, make())
    except ResourceError as error:
        logger.warning("the quantised weights are not kept: %s", error)
        return make()
    return read()


def _written(folder: Path, beside: Sequence[Path], loaded: Loaded) -> Loaded:
    """What was loaded, once its copy is written if that is possible."""
    model, info = loaded
    try:
        with durable.sealed_folder(folder, {}) as draft, _disk_errors():
            save_file(_from_checkpoint(model, info), draft / WEIGHTS, metadata={"format": "pt"})
            for file in beside:
                shutil.copyfile(file, draft / file.name)
    except ResourceError as error:
        logger.warning("the quantised weights are not kept: %s", error)
    return loaded


@contextmanager
def _disk_errors() -> Iterator[None]:
    """safetensors passes on the system's text in an error of its own."""
    try:
        yield
    except SafetensorError as error:
        raise ResourceError(str(error)) from error


def _from_checkpoint(model: Any, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that were read, not those made anew because the checkpoint lacks them; what is tied is there once."""
    anew = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    found: dict[tuple[int, int], tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if name not in anew:
            found.setdefault((tensor.data_ptr(), tensor.nbytes), (name, tensor.contiguous()))
    return dict(found.values())


def _is_whole(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        durable.verify_folder(folder)
    except (CheckpointError, OSError) as error:
        logger.warning("the model is quantised anew: %s", error)
        return False
    return True
