"""Whether a cluster has a node for a worker: Ray itself would wait for one without a word."""

from __future__ import annotations

from typing import Any

import pytest

from automl.execution.ray_driver import lacking
from automl.execution.ray_link import Fleet


def _fleet(**sizes: Any) -> Fleet:
    return Fleet(**{"workers": 1, "cpus": 1.0, "gpus": 0.0, "host": b"", "folder": "", "silence": 1.0, **sizes})


_HEAD = {"memory": 1e9}
_SMALL = {"CPU": 1.0}
_LARGE = {"CPU": 4.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [
        ([_HEAD, _SMALL], {}),
        ([_SMALL, _LARGE], {"cpus": 2.0}),
        ([_SMALL, _LARGE], {"cpus": 1.0, "gpus": 1.0}),
        ([_SMALL, _SMALL], {"shards": 2}),
        ([_LARGE], {"cpus": 2.0, "shards": 2}),
    ],
)
def test_a_worker_has_a_place(nodes: list[dict[str, float]], sizes: dict[str, Any]) -> None:
    assert lacking(nodes, _fleet(**sizes)) == ""


@pytest.mark.parametrize(
    ("nodes", "sizes", "have"),
    [
        ([_HEAD], {}, "none"),
        ([_SMALL, _SMALL], {"cpus": 2.0}, "1 and 0"),
        ([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], {"cpus": 2.0, "gpus": 1.0}, "1 and 1, 8 and 0"),
        ([_LARGE, _SMALL], {"gpus": 1.0, "shards": 2}, "1 and 0, 4 and 1"),
    ],
)
def test_parts_of_several_nodes_are_no_place(nodes: list[dict[str, float]], sizes: dict[str, Any], have: str) -> None:
    assert lacking(nodes, _fleet(**sizes)).endswith(f"; the nodes of the cluster have {have}")
