"""The whole compose file in containers, by its command. Two ends of it that need no container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.composed import ROOT
from tests.containers.engine import why_not

_COMMAND = [sys.executable, "-m", "tests.containers.run"]
_LONGEST_SECONDS = 3600


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(_LONGEST_SECONDS + 300)
def test_the_compose_file_keeps_its_promises_in_containers() -> None:
    if why := why_not():
        pytest.skip(f"SKIP(no containers): {why}")
    with subprocess.Popen(_COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said, _ = process.communicate(timeout=_LONGEST_SECONDS)
        except BaseException:
            process.send_signal(signal.SIGINT)  # it removes what it has made
            raise
    assert process.returncode == 0, said[-4000:]
    assert "everything is as promised" in said


def test_without_an_engine_the_command_says_what_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "DOCKER_HOST": "unix:///nowhere"}
    done = subprocess.run(_COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "containers cannot be run here: no program docker: ./scripts/containers --install\n"
