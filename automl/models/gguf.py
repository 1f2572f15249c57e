"""GGUF files: converted once into an ordinary model folder, because every load from GGUF costs its unpacking again.

SmolLM2-135M (Q4_1): 24 CPU seconds from GGUF, 0.3 from the converted safetensors.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import time
from contextlib import redirect_stderr, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import quantization_config

from automl import durable
from automl.errors import MissingExtraError, ModelError, ResourceError
from automl.models.calling import quiet, quietly
from automl.models.fingerprint import file_digest

logger = logging.getLogger(__name__)

_STALE_SECONDS = 24 * 3600.0


def converted_gguf(file: Path, cache: Path) -> Path:
    """Folder `cache/models/<sha256 of the file>` with the dense fp32 model and its tokenizer, made if it is missing.

    Built in a folder beside it, synced, then renamed: readers see all of it or nothing, and of several processes that
    convert at once the first to finish wins. Raises ModelError (not GGUF, architecture unknown to transformers),
    MissingExtraError (no `gguf` package) or ResourceError (disk full).
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file}: not a GGUF file (it does not begin with 'GGUF')")
    models = cache / "models"
    target = models / file_digest(file, cache)
    if target.is_dir():
        return target
    if find_spec("gguf") is None:
        raise MissingExtraError(f"{file}: reading GGUF needs the package gguf; pip install 'automl-lora[gguf]'")
    models.mkdir(parents=True, exist_ok=True)
    _remove_stale(models, target.name)
    building = Path(tempfile.mkdtemp(dir=models, prefix=f".{target.name}-"))
    try:
        _convert(file, building)
        for path in (*building.iterdir(), building):
            durable.sync(path)
        _publish(building, target)
        durable.sync(models)
    except (OSError, SafetensorError) as error:
        if os.strerror(errno.ENOSPC) in str(error):  # safetensors passes on the system's text, not its number
            raise ResourceError(f"{models}: disk full while converting {file.name}") from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _convert(file: Path, folder: Path) -> None:
    # dequantize=True: without it the model stays marked as quantised and save_pretrained raises
    # (transformers 5.23, quantizers/quantizer_gguf.py: is_serializable is False).
    logger.info("converting %s, once; this takes about 20 CPU seconds per 100 MB", file)
    # redirect_stderr: the loader draws a plain tqdm bar (modeling_gguf_pytorch_utils.py) that no setting turns off.
    with quietly(f"{file}: transformers cannot convert this GGUF file"), redirect_stderr(StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            **_unpacked(),
            dtype=torch.float32,
            local_files_only=True,
        )
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _unpacked() -> dict[str, Any]:
    """Versions of transformers that can leave the weights packed must be told not to; older ones always unpack them."""
    config = getattr(quantization_config, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _publish(building: Path, target: Path) -> None:
    try:
        os.replace(building, target)
    except OSError:
        if not target.is_dir():  # otherwise another process has just put the same content there
            raise


def _remove_stale(models: Path, name: str) -> None:
    """Delete what a killed conversion of the same file left behind, but nothing that may still be in work."""
    for leftover in models.glob(f".{name}-*"):
        with suppress(FileNotFoundError):  # another process is cleaning up as well
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
