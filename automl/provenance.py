"""Where a study came from: versions, machine and source revision, as plain JSON values. No secrets, no user names."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import automl

_PACKAGES = ("torch", "transformers", "peft", "optuna", "ray", "datasets", "sqlalchemy", "safetensors", "bitsandbytes")


def provenance(folder: Path) -> dict[str, str | int | None]:
    """Versions of this program and its libraries, the machine, and the git revision of `folder` if it has one."""
    return {
        **versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "git": _revision(folder),
        "folder": str(folder),
    }


def versions() -> dict[str, str | None]:
    """Versions of this program, Python and the libraries."""
    packages = {name: _version(name) for name in _PACKAGES}
    return {"automl": automl.__version__, "python": platform.python_version(), **packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Model name of the first CPU on Linux, else what the platform says."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _revision(folder: Path) -> str | None:
    """`git describe` of the folder, with "-dirty" when something tracked has changed; None outside a checkout."""
    try:
        result = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
