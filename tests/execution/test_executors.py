"""Choosing an executor, and what a Ray worker's environment may hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from automl.execution import make_executor
from automl.execution.ray_tune import environment
from automl.space.entries import EXECUTORS


def test_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown executor 'inlin'; known: ray, inline \(did you mean 'inline'\?\)"):
        make_executor("inlin")


@pytest.mark.parametrize("name", EXECUTORS.built_in)
def test_making_an_executor_loads_neither_ray_nor_torch(name: str, tmp_path: Path) -> None:
    script = f"""
import sys
from automl.execution import make_executor
from automl.space.entries import EXECUTORS
make_executor({name!r}, workers=2)
print([name for name in ("ray", "torch", "optuna") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.strip() == "[]"


OURS = {
    "AUTOML_DB_URL": "postgresql://automl:canary@db/automl",
    "HF_TOKEN": "canary",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "RAY_AUTH_TOKEN": "theirs",
    "RAY_ADDRESS": "10.0.0.1:6379",
    "PATH": "/bin",
    "CUDA_VISIBLE_DEVICES": "0",
    "AUTOML_RUN_ID": "r1",
}


def test_workers_see_an_allow_list_and_never_a_secret() -> None:
    theirs = environment(OURS, address=None, threads=3)
    assert "canary" not in str(theirs)
    assert theirs["PATH"] == "/bin"
    assert theirs["CUDA_VISIBLE_DEVICES"] == "0"
    assert theirs["AUTOML_RUN_ID"] == "r1"
    assert theirs["OMP_NUM_THREADS"] == "3"
    assert theirs["HF_HUB_OFFLINE"] == "1"


def test_a_private_cluster_has_a_token_of_its_own_and_ignores_other_clusters() -> None:
    open_to_all = {**OURS, "RAY_AUTH_MODE": "disabled"}
    first, second = (environment(ours, address=None, threads=1) for ours in (OURS, open_to_all))
    assert second["RAY_AUTH_MODE"] == "token"
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) >= 43
    assert first["RAY_AUTH_TOKEN"] not in ("theirs", second["RAY_AUTH_TOKEN"])
    assert "RAY_ADDRESS" not in first


def test_a_cluster_to_join_is_reached_with_the_users_own_ray_settings() -> None:
    assert environment(OURS, address="10.0.0.1:6379", threads=1)["RAY_AUTH_TOKEN"] == "theirs"
