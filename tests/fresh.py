"""Fresh processes of Python that start in milliseconds: programs that know nothing of the test that runs them.

To import torch, transformers and PEFT takes a process ten seconds. One process does that once, and nothing else; each
program runs in a copy forked from it, as what it would be by `python -c CODE`, `python -m MODULE` or `python FILE`. Of
the environment, what the libraries read when they are imported is that of the first test. What is held about imports,
signals and the like needs a process of its own: `subprocess`.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]


def run_python(
    *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `python ARGUMENTS` does there and says."""
    with tempfile.TemporaryDirectory(prefix="automl-fresh-") as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        program = {
            "arguments": [str(each) for each in arguments],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "said": [str(path) for path in said],
        }
        code = _server()(json.dumps(program))
        out, err = (path.read_text(encoding="utf-8") for path in said)
    return subprocess.CompletedProcess(program["arguments"], code, out, err)


class _Server:
    """The process that has imported all; it forks, waits, and answers with the exit code."""

    def __init__(self) -> None:
        from tests.databases import at_end

        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        at_end.enter_context(self._process)
        at_end.callback(self._process.kill)  # first: a fork may hold its standard input open

    def __call__(self, program: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(program + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


_server = functools.cache(_Server)


def _serve(programs: Iterable[str]) -> dict[str, Any] | None:
    """Fork for each, and return in the child with what is to become of it; None at the end."""
    for program in programs:
        child = os.fork()
        if not child:
            return dict(json.loads(program))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the answer
    return None


def _become(arguments: list[str], folder: str, environment: dict[str, str], said: list[str]) -> None:
    for descriptor, path in enumerate((os.devnull, *said)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if arguments[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
        program = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), program.__dict__)
    elif arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], folder
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import peft  # noqa: F401
    from transformers import BertForSequenceClassification, LlamaForCausalLM  # noqa: F401

    if program := _serve(sys.stdin):
        _become(**program)
