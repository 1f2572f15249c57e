"""What the executor over Ray shows to the outside: no secret, no public port, no file or process left behind."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from automl.errors import ResourceError
from automl.execution.dispatch import Dispatcher
from automl.execution.ray_tune import RayExecutor
from automl.testing.formula import FormulaHost
from automl.trial import Measurement, TrialFailure
from tests.execution.scripted import ScriptedStudy
from tests.faults.kill import WORKER_TITLES
from tests.faults.scenario import stretch

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-2f9d41"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output") / "study"


@pytest.fixture(scope="module")
def executor(output: Path) -> Iterator[RayExecutor]:
    OLDER[:] = psutil.Process().children(recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_DB_URL", f"postgresql://automl:{CANARY}@db/automl")
        patch.setenv("HF_TOKEN", CANARY)
        with RayExecutor(workers=2, folder=output) as executor:
            yield executor


OLDER: list[psutil.Process] = []
"""Children that the tests before have left, such as the resource tracker of multiprocessing."""


def family() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if each not in OLDER and command_of(each)]


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def head_folder() -> Path:
    """The private folder of the cluster, as its processes name it."""
    text = " ".join(part for process in family() for part in command_of(process))
    found = re.search(r"/tmp/automl-\w+", text)
    assert found is not None
    return Path(found.group())


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; somebody else may not have reaped it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def files_below(folder: Path) -> list[Path]:
    """All files in it; what is removed while we look is left out."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def holds(path: Path, needle: str) -> bool:
    try:
        return path.is_file() and needle.encode() in path.read_bytes()
    except OSError:  # Ray removes files of its own while we look
        return False


class SecretiveStudy(ScriptedStudy):
    """A study that, as a real one does, holds a database URL."""

    def __init__(self, trials: int) -> None:
        super().__init__(trials)
        self.url = f"postgresql://automl:{CANARY}@db/automl"


def test_no_secret_reaches_a_file_or_a_process_and_every_port_is_local(
    executor: RayExecutor, output: Path, tmp_path: Path
) -> None:
    looked: list[int] = []

    def look() -> None:
        if looked:
            return
        records = files_below(output)
        files = [*records, *files_below(head_folder())]
        assert [path for path in files if holds(path, CANARY)] == []
        assert [path for path in records if path.name == "tuner.pkl"], "Tune's records are not where we looked"
        for process in family():
            try:
                environment, connections = str(process.environ()), process.net_connections(kind="inet")
            except psutil.NoSuchProcess:  # a helper of Ray has ended
                continue
            assert CANARY not in environment
            for connection in connections:
                if connection.status == psutil.CONN_LISTEN:
                    address = ipaddress.ip_address(connection.laddr.ip)
                    assert address.is_loopback or address == ipaddress.ip_address("::ffff:127.0.0.1"), process
        looked.append(len(files))

    dispatcher = Dispatcher(SecretiveStudy(4), on_exchange=look)
    executor.run(dispatcher, functools.partial(FormulaHost, str(tmp_path)))
    assert looked
    assert head_folder().stat().st_mode & 0o777 == 0o700
    # Tune's records go when the run ends.
    assert list(output.iterdir()) == []


def test_it_prints_nothing_and_warns_in_one_line(
    executor: RayExecutor, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        workers = [process for process in family() if " ".join(command_of(process)).startswith(WORKER_TITLES)]
        if workers and not killed:
            killed.append(workers[0].pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                workers[0].kill()

    executor.run(Dispatcher(ScriptedStudy(4), on_exchange=kill_one), functools.partial(FormulaHost, str(tmp_path)))
    assert killed
    assert capfd.readouterr() == ("", "")
    assert [record.getMessage().count("\n") for record in caplog.records if "died" in record.getMessage()] == [0]


class HangsOnce(FormulaHost):
    """Waits for a lock that nobody frees, the first time any worker trains."""

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        try:
            (self._folder / "hung").touch(exist_ok=False)
        except FileExistsError:
            return super().advance()
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
        raise AssertionError("unreachable")


def test_a_worker_that_hangs_is_ended_and_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = ScriptedStudy(2)
    with RayExecutor(workers=1, folder=tmp_path / "study", silence=4.0) as executor:
        executor.run(Dispatcher(study), functools.partial(HangsOnce, str(tmp_path / "slots")))
    assert study.finished
    warning, *_ = [record.getMessage() for record in caplog.records if "died" in record.getMessage()]
    assert re.search(r"it asked for no batch in 4 s and hung at File \".*\", line \d+ in advance$", warning), warning


def test_a_cluster_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    refused = r"run.address: no Ray cluster answers at 127.0.0.1:1: Connection refused"
    with pytest.raises(ResourceError, match=refused), RayExecutor(workers=1, address="127.0.0.1:1", folder=tmp_path):
        pass


def test_closing_leaves_no_process_and_no_folder(executor: RayExecutor) -> None:
    folder, processes = head_folder(), family()
    executor.close()
    deadline = time.monotonic() + 60.0 * stretch()
    while not all(map(is_gone, processes)):
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)
    assert not folder.exists()


def test_ray_starts_from_a_python_with_blanks_in_its_path(tmp_path: Path) -> None:
    """Ray cuts the command line of its workers at blanks; the head must start it from a path that has none."""
    environment = tmp_path / "my projects" / "venv"
    environment.parent.mkdir()
    environment.symlink_to(sys.prefix, target_is_directory=True)
    script = """
import functools, sys
from pathlib import Path
from automl.execution.dispatch import Dispatcher
from automl.execution.ray_tune import RayExecutor
from automl.trial import Measurement, TrialFailure
from tests.execution.scripted import ScriptedStudy
from automl.testing.formula import FormulaHost
folder, = map(Path, sys.argv[1:])
study = ScriptedStudy(1)
with RayExecutor(workers=1, folder=folder / "study") as executor:
    executor.run(Dispatcher(study), functools.partial(FormulaHost, str(folder / "slots")))
assert study.finished
"""
    python = environment / Path(sys.executable).relative_to(sys.prefix)
    result = subprocess.run(
        [str(python), "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
