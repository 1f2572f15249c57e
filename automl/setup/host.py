"""Which host a worker builds. Each is imported only where it is needed: PEFT alone takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automl.execution.base import Host
from automl.results.folders import cache_folder
from automl.training.runtime import HostSettings

if TYPE_CHECKING:
    from automl.packed.host import PackedHost
    from automl.training.host import SoloHost


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
    """The same on a machine that may lack the model and the data: they are fetched from `artifacts`, a URL."""
    from automl.setup.hosts import at_hand

    return build_host(at_hand(settings, artifacts, cache_folder()))
